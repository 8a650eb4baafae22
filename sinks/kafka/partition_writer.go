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

	"github.com/outboxrelay/relay/internal/uuid"
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

// partitionWriter sends to one partition: one batch at a time, the next one only
// when that is resolved, so that nothing overtakes. It has a goroutine while it has
// something to send. The writer stays as long as the publisher, because its
// sequence must go on where it was.
type partitionWriter struct {
	publisher *Publisher
	partitionName

	mu      sync.Mutex
	queue   []*segment
	running bool

	// The rest belongs to the goroutine.

	// producer and sequence are of the next batch; a writer without one has
	// noProducer and asks for one.
	producer producer
	sequence int32
	// spent is the producer id that the writer had before and must not get again.
	spent int64
	// limit is the size of the next batch, ceiling a size that the broker is
	// known to refuse, or batchBytes.
	limit, ceiling int
}

// requestBatch is a record batch that knows whose messages it has.
type requestBatch struct {
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

func newPartitionWriter(p *Publisher, topic string, partition int32) *partitionWriter {
	limit := min(batchBytes, p.maxMessageBytes)
	return &partitionWriter{publisher: p, partitionName: partitionName{topic, partition}, producer: noProducer, spent: noProducer.id, limit: limit, ceiling: limit}
}

// enqueue adds a segment. The caller holds the publisher open.
func (w *partitionWriter) enqueue(s *segment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(w.queue, s)
	if !w.running {
		w.running = true
		w.publisher.running.Go(w.run)
	}
}

// run sends until the queue is empty. What is sent is collected when it may go, so
// that nobody has given it up by then.
func (w *partitionWriter) run() {
	ctx := w.publisher.ctx
	for len(w.waiting()) > 0 {
		may, err := w.admit(ctx, false)
		if err != nil {
			w.fail(closedError())
			continue
		}
		segments := w.waiting()
		if len(segments) == 0 {
			may.release()
			return
		}
		batch := w.publisher.batch()
		w.collect(batch, segments)
		if batch.count > 0 {
			w.deliver(batch, &may)
		}
		may.release()
		w.publisher.recycle(batch)
	}
}

// waiting drops what is resolved from the queue and returns the rest, nil when
// the goroutine is to end.
func (w *partitionWriter) waiting() []*segment {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = slices.DeleteFunc(w.queue, (*segment).settled)
	if len(w.queue) == 0 {
		w.queue, w.running = nil, false
		return nil
	}
	return slices.Clone(w.queue)
}

// collect fills the batch from the head of the queue.
func (w *partitionWriter) collect(batch *requestBatch, segments []*segment) {
	batch.begin()
	batch.entries, batch.parts = batch.entries[:0], batch.parts[:0]
	for _, s := range segments {
		if full := w.collectSegment(batch, s); full {
			break
		}
	}
}

func (w *partitionWriter) collectSegment(batch *requestBatch, s *segment) (full bool) {
	c := s.call
	c.memory.RLock()
	defer c.memory.RUnlock()
	if c.ended.Load() {
		return false
	}
	before, position := batch.count, s.next
	for ; position < len(s.indexes); position++ {
		index := s.indexes[position]
		if c.held(index) {
			continue
		}
		start := batch.add(&c.messages[index])
		if batch.size() > w.limit && batch.count > 1 {
			batch.undo(start)
			full = true
			break
		}
		if size := batch.size(); size > w.publisher.maxMessageBytes {
			batch.undo(start)
			c.fail(w.tooLarge(&c.messages[index], size, "max_message_bytes of the sink"), index)
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
func (w *partitionWriter) deliver(batch *requestBatch, may *admission) {
	ctx, cluster := w.publisher.ctx, w.publisher.cluster
	if err := batch.finish(time.Now()); err != nil {
		w.fail(&sinks.Error{Scope: sinks.ScopeSink, Reason: reasonCompression, Err: err})
		return
	}
	var (
		began       = time.Now()
		pause       = firstPause
		inDoubt     bool // an attempt of this producer id may have been appended
		reconnected bool
		renewed     int
		muted       time.Duration
	)
	// A sequence that may have been used must not be used for other records.
	defer func() {
		if inDoubt {
			w.bump()
		}
	}()
	for {
		if ctx.Err() != nil {
			w.fail(closedError())
			return
		}
		if may.released() {
			next, err := w.admit(ctx, inDoubt)
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
		response, err := w.send(ctx, batch, may)
		may.release()
		if err == nil {
			w.publisher.answered.Store(time.Now().UnixNano())
			err = response.Error
		}
		if err == nil || inDoubt && errors.Is(err, kafkago.DuplicateSequenceNumber) {
			inDoubt = false
			w.acknowledge(batch)
			return
		}
		verdict := w.narrow(judge(err), batch, err)
		inDoubt = inDoubt || verdict.appended
		atOnce := !reconnected && (verdict.action == actionReconnect && verdict.reason != reasonTimeout || errors.Is(err, errUnlisted))
		if response == nil && verdict.waits() && !atOnce {
			verdict, err = w.locate(ctx, verdict, err)
		}
		failure := w.failure(err, verdict)
		for _, p := range batch.parts {
			p.segment.trouble.Store(&failure)
		}
		if verdict.scope == sinks.ScopePartition {
			w.publisher.avoided.add(w.partitionName)
		}

		switch {
		case verdict.action == actionRefuse:
			w.refuse(batch, response, err, verdict)
			return
		case atOnce:
			// Often the connection was idle for long and dead already, or the list of
			// brokers is of a moment when none answered.
			reconnected = true
			cluster.reset(era)
			continue
		case verdict.action == actionRenew && renewed < renewals:
			renewed++
			w.publisher.logger.Info("kafka: the broker does not know the producer any more; going on with a new producer id",
				"topic", w.topic, "partition", w.partition, "error", err)
			w.renew()
			inDoubt = false // nothing was sent under the new producer id
			continue
		case verdict.action == actionDowngrade && w.producer != noProducer:
			w.publisher.producers.refuse(err)
			w.renew()
			continue
		case verdict.waits() && time.Since(began)-muted < patience(inDoubt):
			if verdict.moved {
				if response == nil {
					cluster.refresh(era)
				}
				w.publisher.layouts.renew(ctx, w.topic, asked)
			}
			sleep(ctx, pause)
			pause = min(2*pause, longPause)
			continue
		}
		w.fail(failure)
		return
	}
}

// narrow has a batch with records without key that a broker calls corrupt tried
// in halves: before 2.4 it means such a record, in a compacted topic.
func (w *partitionWriter) narrow(v verdict, batch *requestBatch, err error) verdict {
	if !errors.Is(err, kafkago.InvalidMessage) || !slices.ContainsFunc(batch.entries, func(e entry) bool { return e.keyless }) {
		return v
	}
	return verdict{action: actionRefuse, scope: sinks.ScopeMessage, reason: reasonInvalidMessage}
}

// locate finds out whom an attempt without an answer concerns. Where the cluster
// answers otherwise, it is the partition: its leader is gone, or this one
// connection is. Where nobody answers there is nothing to wait for.
func (w *partitionWriter) locate(ctx context.Context, v verdict, err error) (verdict, error) {
	if unreached := w.publisher.cluster.answers(ctx); unreached != nil {
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
func (w *partitionWriter) send(ctx context.Context, batch *requestBatch, may *admission) (*kafkago.ProduceResponse, error) {
	if may.unled != nil {
		return nil, may.unled
	}
	if w.producer == noProducer {
		next, err := w.publisher.producers.after(ctx, w.spent)
		if err != nil {
			return nil, err
		}
		w.producer, w.sequence = next, 0
	}
	sequence := w.sequence
	if w.producer == noProducer {
		sequence = -1
	}
	batch.stamp(w.producer, sequence)
	response, err := w.publisher.cluster.produce(ctx, may.leader, w.topic, w.partition, batch.wire)
	if err != nil && (ctx.Err() != nil || isTimeout(err)) {
		// Kafka-go may still be writing the request, to a connection that
		// nobody waits for any more.
		batch.detach()
	}
	if err != nil {
		err = fmt.Errorf("its leader, broker %d at %s: %w", may.leader, w.publisher.layouts.address(may.leader), err)
	}
	return response, err
}

// bump goes on under the next epoch of the producer id, whose sequences are all
// unused. With its first batch the broker refuses what may still be on its way in
// the epoch before, so that a batch which was given up is not appended late.
func (w *partitionWriter) bump() {
	switch {
	case w.producer == noProducer:
	case w.producer.epoch < math.MaxInt16:
		w.producer.epoch++
		w.sequence = 0
	default:
		w.renew()
	}
}

// renew gives the writer's producer id up.
func (w *partitionWriter) renew() {
	if w.producer != noProducer {
		w.spent, w.producer = w.producer.id, noProducer
	}
}

// wanted reports whether somebody waits for any part of the batch.
func (batch *requestBatch) wanted() bool {
	return slices.ContainsFunc(batch.parts, func(p part) bool { return !p.segment.settled() })
}

// whole reports whether somebody waits for every part of the batch.
func (batch *requestBatch) whole() bool {
	return !slices.ContainsFunc(batch.parts, func(p part) bool { return p.segment.settled() })
}

func (w *partitionWriter) acknowledge(batch *requestBatch) {
	w.publisher.avoided.remove(w.partitionName)
	w.sequence = nextSequence(w.sequence, batch.count)
	w.limit = min(2*w.limit, w.ceiling)
	for _, p := range batch.parts {
		p.segment.acknowledge(p.to, p.n)
	}
}

// fail resolves the batch and everything behind it: the same keys may be there.
func (w *partitionWriter) fail(err error) {
	w.mu.Lock()
	queue := w.queue
	w.queue = nil
	w.mu.Unlock()
	for _, s := range queue {
		s.fail(err)
	}
}

// refuse finds the records that the broker refused. Where it does not name
// them, the next batch is half as large, until the refused record is alone.
func (w *partitionWriter) refuse(batch *requestBatch, response *kafkago.ProduceResponse, err error, v verdict) {
	if batch.count == 1 {
		w.refuseEntry(batch.entries[0], batch.size(), err, v)
		return
	}
	if response != nil && len(response.RecordErrors) > 0 {
		named := false
		for _, i := range slices.Sorted(maps.Keys(response.RecordErrors)) {
			if i >= 0 && i < len(batch.entries) {
				named = true
				w.refuseEntry(batch.entries[i], 0, fmt.Errorf("%w: %w", err, response.RecordErrors[i]), v)
			}
		}
		if named {
			return
		}
	}
	w.limit = max(batch.size()/2, 1)
	if v.reason == reasonTooLarge {
		w.ceiling = max(w.limit, min(w.ceiling, batch.size()-1))
	}
}

func (w *partitionWriter) refuseEntry(e entry, size int, err error, v verdict) {
	c := e.segment.call
	c.memory.RLock()
	defer c.memory.RUnlock()
	if c.ended.Load() {
		return
	}
	m := &c.messages[e.index]
	if v.reason == reasonTooLarge {
		c.fail(w.tooLarge(m, size, "max.message.bytes of the topic"), e.index)
		return
	}
	c.fail(&sinks.Error{Scope: v.scope, Permanent: v.permanent, Reason: v.reason,
		Err: fmt.Errorf("kafka topic %s refused message %s: %w", w.topic, uuid.String(m.ID), err)}, e.index)
}

func (w *partitionWriter) tooLarge(m *sinks.Message, size int, bound string) error {
	return &sinks.Error{Scope: sinks.ScopeMessage, Permanent: true, Reason: reasonTooLarge,
		Err: fmt.Errorf("kafka topic %s: message %s is %d bytes with its headers, more than %s allows (%d bytes of payload): raise that bound, or make the message smaller",
			w.topic, uuid.String(m.ID), size, bound, len(m.Payload))}
}

// failure is the error of a batch that the writer gives up.
func (w *partitionWriter) failure(err error, v verdict) error {
	switch v.scope {
	case sinks.ScopeDestination, sinks.ScopeMessage:
		err = w.publisher.destinationError(w.topic, err, v.reason)
	default:
		err = fmt.Errorf("kafka topic %s, partition %d: %w", w.topic, w.partition, w.publisher.cluster.diagnose(err))
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
