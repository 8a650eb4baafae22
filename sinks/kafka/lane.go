package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/sinks"
)

const (
	// batchBytes is a batch's size before compression, unless one message
	// alone is larger.
	batchBytes = 900_000
	firstPause = 50 * time.Millisecond
	longPause  = 500 * time.Millisecond
	// renewals bounds how often one batch asks for a new producer id.
	renewals = 3
)

// lane sends to one partition: one batch at a time, the next one only when that
// is resolved, so that nothing overtakes. It has a goroutine while it has
// something to send. The lane itself stays as long as the publisher, because
// its sequence must go on where it was.
type lane struct {
	publisher *Publisher
	laneName

	mu      sync.Mutex
	queue   []*segment
	running bool

	// The rest belongs to the goroutine.

	// session and sequence are of the next batch; a lane without one has
	// noSession and asks for one.
	session  session
	sequence int32
	// spent is the producer id that the lane had before and must not get again.
	spent int64
	// limit is the size of the next batch, ceiling a size that the broker is
	// known to refuse, or batchBytes.
	limit, ceiling int
}

// shipment is a batch with whose messages it has.
type shipment struct {
	recordBatch
	// entries are the records', in order, parts the segments'.
	entries []entry
	parts   []part
}

// entry is a record's message.
type entry struct {
	segment *segment
	index   int32
	keyless bool
}

// part is a segment's share of a batch: n records, up to a position.
type part struct {
	segment *segment
	to, n   int
}

func newLane(p *Publisher, topic string, partition int32) *lane {
	limit := min(batchBytes, p.maxMessageBytes)
	return &lane{publisher: p, laneName: laneName{topic, partition}, session: noSession, spent: noSession.id, limit: limit, ceiling: limit}
}

// enqueue adds a segment. The caller holds the publisher open.
func (l *lane) enqueue(s *segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(l.queue, s)
	if !l.running {
		l.running = true
		l.publisher.running.Go(l.run)
	}
}

// run sends until the queue is empty. What is sent is collected when it may go, so
// that nobody has given it up by then.
func (l *lane) run() {
	ctx := l.publisher.ctx
	for len(l.waiting()) > 0 {
		may, err := l.admit(ctx, false)
		if err != nil {
			l.fail(closedError())
			continue
		}
		segments := l.waiting()
		if len(segments) == 0 {
			may.release()
			return
		}
		batch := l.publisher.batch()
		l.collect(batch, segments)
		if batch.count > 0 {
			l.deliver(batch, &may)
		}
		may.release()
		l.publisher.recycle(batch)
	}
}

// waiting drops what is resolved from the queue and returns the rest, nil when
// the goroutine is to end.
func (l *lane) waiting() []*segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = slices.DeleteFunc(l.queue, (*segment).settled)
	if len(l.queue) == 0 {
		l.queue, l.running = nil, false
		return nil
	}
	return slices.Clone(l.queue)
}

// collect fills the batch from the head of the queue.
func (l *lane) collect(batch *shipment, segments []*segment) {
	batch.begin()
	batch.entries, batch.parts = batch.entries[:0], batch.parts[:0]
	for _, s := range segments {
		if full := l.collectSegment(batch, s); full {
			break
		}
	}
}

func (l *lane) collectSegment(batch *shipment, s *segment) (full bool) {
	c := s.call
	c.memory.RLock()
	defer c.memory.RUnlock()
	if c.ended {
		return false
	}
	before, position := batch.count, s.next
	for ; position < len(s.indexes); position++ {
		index := s.indexes[position]
		if c.held(index) {
			continue
		}
		start := batch.add(&c.messages[index])
		if batch.size() > l.limit && batch.count > 1 {
			batch.undo(start)
			full = true
			break
		}
		if size := batch.size(); size > l.publisher.maxMessageBytes {
			batch.undo(start)
			c.refuse(l.tooLarge(&c.messages[index], size, "max_message_bytes of the sink"), index)
			continue
		}
		batch.entries = append(batch.entries, entry{s, index, c.messages[index].Key == nil})
	}
	if n := batch.count - before; n > 0 {
		batch.parts = append(batch.parts, part{s, position, n})
	} else {
		s.skip(position)
	}
	return full
}

// deliver sends the batch until it is resolved: acknowledged, refused, or
// failed and with it all that waits behind it. A batch of which a part was
// refused is not resolved, and collected again without that part.
func (l *lane) deliver(batch *shipment, may *admission) {
	ctx, cluster := l.publisher.ctx, l.publisher.cluster
	if err := batch.finish(time.Now()); err != nil {
		l.fail(&sinks.Error{Scope: sinks.ScopeSink, Reason: reasonCompression, Err: err})
		return
	}
	var (
		began       = time.Now()
		pause       = firstPause
		inDoubt     bool // an attempt of this session may have been appended
		reconnected bool
		renewed     int
		muted       time.Duration
	)
	// A sequence that may have been used must not be used for other records.
	defer func() {
		if inDoubt {
			l.bump()
		}
	}()
	for {
		if ctx.Err() != nil {
			l.fail(closedError())
			return
		}
		if may.released() {
			next, err := l.admit(ctx, inDoubt)
			if err != nil {
				continue
			}
			*may = next
			muted += next.muted
		}
		// What was surely not appended goes without those who have given up since,
		// and who send it again.
		if !batch.wanted() || !inDoubt && !batch.whole() {
			return
		}
		era, asked := cluster.era(), time.Now()
		response, err := l.send(ctx, batch, may)
		may.release()
		if err == nil {
			l.publisher.answered.Store(time.Now().UnixNano())
			err = response.Error
		}
		if err == nil || inDoubt && errors.Is(err, kafkago.DuplicateSequenceNumber) {
			inDoubt = false
			l.acknowledge(batch)
			return
		}
		verdict := l.narrow(judge(err), batch, err)
		inDoubt = inDoubt || verdict.appended
		atOnce := !reconnected && (verdict.action == actionReconnect && verdict.reason != reasonTimeout || errors.Is(err, errUnlisted))
		if response == nil && verdict.waits() && !atOnce {
			verdict, err = l.locate(ctx, verdict, err)
		}
		failure := l.failure(err, verdict)
		for _, p := range batch.parts {
			p.segment.trouble.Store(&failure)
		}
		if verdict.scope == sinks.ScopePartition {
			l.publisher.avoided.add(l.laneName)
		}

		switch {
		case verdict.action == actionRefuse:
			l.refuse(batch, response, err, verdict)
			return
		case atOnce:
			// Often the connection was idle for long and dead already, or the list of
			// brokers is of a moment when none answered.
			reconnected = true
			cluster.reset(era)
			continue
		case verdict.action == actionRenew && renewed < renewals:
			renewed++
			l.publisher.logger.Info("kafka: the broker does not know the producer any more; going on with a new producer id",
				"topic", l.topic, "partition", l.partition, "error", err)
			l.renew()
			inDoubt = false // nothing was sent in the new session
			continue
		case verdict.action == actionDowngrade && l.session != noSession:
			l.publisher.sessions.refuse(err)
			l.renew()
			continue
		case verdict.waits() && time.Since(began)-muted < patience(inDoubt):
			if verdict.moved {
				if response == nil {
					cluster.refresh(era)
				}
				l.publisher.layouts.renew(ctx, l.topic, asked)
			}
			sleep(ctx, pause)
			pause = min(2*pause, longPause)
			continue
		}
		l.fail(failure)
		return
	}
}

// narrow has a batch with records without key that a broker calls corrupt tried
// in halves: before 2.4 it means such a record, in a compacted topic.
func (l *lane) narrow(v verdict, batch *shipment, err error) verdict {
	if !errors.Is(err, kafkago.InvalidMessage) || !slices.ContainsFunc(batch.entries, func(e entry) bool { return e.keyless }) {
		return v
	}
	return verdict{action: actionRefuse, scope: sinks.ScopeMessage, reason: reasonInvalidMessage}
}

// locate finds out whom an attempt without an answer concerns. Where the cluster
// answers otherwise, it is the partition: its leader is gone, or this one
// connection is. Where nobody answers there is nothing to wait for.
func (l *lane) locate(ctx context.Context, v verdict, err error) (verdict, error) {
	if unreached := l.publisher.cluster.answers(ctx); unreached != nil {
		v := judge(unreached)
		v.action, v.scope = actionFail, sinks.ScopeSink
		return v, unreached
	}
	if v.action == actionReconnect {
		v.action, v.scope = actionWait, sinks.ScopePartition
	}
	return v, err
}

// send makes one attempt. An error before anything was sent is one too.
func (l *lane) send(ctx context.Context, batch *shipment, may *admission) (*kafkago.ProduceResponse, error) {
	if may.unled != nil {
		return nil, may.unled
	}
	if l.session == noSession {
		next, err := l.publisher.sessions.after(ctx, l.spent)
		if err != nil {
			return nil, err
		}
		l.session, l.sequence = next, 0
	}
	sequence := l.sequence
	if l.session == noSession {
		sequence = -1
	}
	batch.stamp(l.session, sequence)
	response, err := l.publisher.cluster.produce(ctx, may.leader, l.topic, l.partition, batch.wire)
	if err != nil && (ctx.Err() != nil || isTimeout(err)) {
		// Kafka-go may still be writing the request, to a connection that
		// nobody waits for any more.
		batch.detach()
	}
	if err != nil {
		err = fmt.Errorf("its leader, broker %d at %s: %w", may.leader, l.publisher.layouts.address(may.leader), err)
	}
	return response, err
}

// bump goes on under the next epoch of the session, whose sequences are all
// unused. With its first batch the broker refuses what may still be on its way in
// the epoch before, so that a batch which was given up is not appended late.
func (l *lane) bump() {
	switch {
	case l.session == noSession:
	case l.session.epoch < math.MaxInt16:
		l.session.epoch++
		l.sequence = 0
	default:
		l.renew()
	}
}

// renew gives the lane's producer id up.
func (l *lane) renew() {
	if l.session != noSession {
		l.spent, l.session = l.session.id, noSession
	}
}

// wanted reports whether somebody waits for any part of the batch.
func (batch *shipment) wanted() bool {
	return slices.ContainsFunc(batch.parts, func(p part) bool { return !p.segment.settled() })
}

// whole reports whether somebody waits for every part of the batch.
func (batch *shipment) whole() bool {
	return !slices.ContainsFunc(batch.parts, func(p part) bool { return p.segment.settled() })
}

func (l *lane) acknowledge(batch *shipment) {
	l.publisher.avoided.remove(l.laneName)
	l.sequence = nextSequence(l.sequence, batch.count)
	l.limit = min(2*l.limit, l.ceiling)
	for _, p := range batch.parts {
		p.segment.acknowledge(p.to, p.n)
	}
}

// fail resolves the batch and everything behind it: the same keys may be there.
func (l *lane) fail(err error) {
	l.mu.Lock()
	queue := l.queue
	l.queue = nil
	l.mu.Unlock()
	for _, s := range queue {
		s.fail(err)
	}
}

// refuse finds the records that the broker refused. Where it does not name
// them, the next batch is half as large, until the refused record is alone.
func (l *lane) refuse(batch *shipment, response *kafkago.ProduceResponse, err error, v verdict) {
	if batch.count == 1 {
		l.refuseEntry(batch.entries[0], batch.size(), err, v)
		return
	}
	if response != nil && len(response.RecordErrors) > 0 {
		named := false
		for _, i := range slices.Sorted(maps.Keys(response.RecordErrors)) {
			if i >= 0 && i < len(batch.entries) {
				named = true
				l.refuseEntry(batch.entries[i], 0, fmt.Errorf("%w: %w", err, response.RecordErrors[i]), v)
			}
		}
		if named {
			return
		}
	}
	l.limit = max(batch.size()/2, 1)
	if v.reason == reasonTooLarge {
		l.ceiling = max(l.limit, min(l.ceiling, batch.size()-1))
	}
}

func (l *lane) refuseEntry(e entry, size int, err error, v verdict) {
	c := e.segment.call
	c.memory.RLock()
	defer c.memory.RUnlock()
	if c.ended {
		return
	}
	m := &c.messages[e.index]
	if v.reason == reasonTooLarge {
		c.refuse(l.tooLarge(m, size, "max.message.bytes of the topic"), e.index)
		return
	}
	c.refuse(&sinks.Error{Scope: v.scope, Permanent: v.permanent, Reason: v.reason,
		Err: fmt.Errorf("kafka topic %s refused message %s: %w", l.topic, canonical(m.ID), err)}, e.index)
}

func (l *lane) tooLarge(m *sinks.Message, size int, bound string) error {
	return &sinks.Error{Scope: sinks.ScopeMessage, Permanent: true, Reason: reasonTooLarge,
		Err: fmt.Errorf("kafka topic %s: message %s is %d bytes with its headers, more than %s allows (%d bytes of payload): raise that bound, or make the message smaller",
			l.topic, canonical(m.ID), size, bound, len(m.Payload))}
}

// failure is the error of a batch that the lane gives up.
func (l *lane) failure(err error, v verdict) error {
	switch v.scope {
	case sinks.ScopeDestination, sinks.ScopeMessage:
		err = l.publisher.destinationError(l.topic, err, v.reason)
	default:
		err = fmt.Errorf("kafka topic %s, partition %d: %w", l.topic, l.partition, l.publisher.cluster.diagnose(err))
	}
	return &sinks.Error{Scope: v.scope, Permanent: v.permanent, Reason: v.reason, Err: err}
}

// sleep pauses, for less when ctx ends.
func sleep(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
