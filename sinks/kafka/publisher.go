// Package kafka is the sink for Apache Kafka, on kafka-go's Client.
//
// Each partition has a lane with one batch under way, filled by all concurrent
// calls; the next batch waits until that one is resolved, and goes nowhere when
// it failed. So messages of one key keep their order whatever happens, and the
// partitions keep each other company. Batches carry a producer id and a
// sequence where the broker allows it, so that a batch that is sent again after
// a broken connection is not appended twice.
//
// A key's partition is Java's murmur2 of the key modulo the number of
// partitions. A topic that gets more partitions has its keys in other ones from
// then on, as with every Kafka producer: what a key had before is not moved.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/outboxrelay/relay/sinks"
)

const (
	// concurrentRequests bounds the connections to a broker, each of which has
	// one request at a time, and the memory of batches.
	concurrentRequests = 64
	// grace is how long a topic that nobody knows is waited for: it may have
	// been created a moment ago.
	grace = 2 * time.Second
	// unknownFor is how long an unknown topic is not waited for again.
	unknownFor = 30 * time.Second
	// spread is how many messages without key go to a partition before the
	// next one is taken.
	spread = 64
)

// Publisher sends messages to one Kafka cluster. It implements
// sinks.Publisher.
type Publisher struct {
	envelope        envelope
	codec           compress.Compression
	maxMessageBytes int
	logger          *slog.Logger
	cluster         *cluster
	sessions        *sessions
	// ctx ends at Close, and with it the lanes.
	ctx    context.Context
	cancel context.CancelFunc
	// running are the calls and the lanes' goroutines.
	running sync.WaitGroup
	slots   chan struct{}
	batches sync.Pool
	// keyless counts messages without key.
	keyless atomic.Uint32

	mu     sync.Mutex
	closed bool
	lanes  map[laneName]*lane
	// unknown are topics that were waited for, and until when that holds.
	unknown map[string]time.Time
}

type laneName struct {
	topic     string
	partition int32
}

var _ sinks.Publisher = (*Publisher)(nil)

// New returns a Publisher that has not connected yet. It reads the files that
// config names; its errors begin with the field's path.
func New(config Config, style sinks.Envelope, logger *slog.Logger) (*Publisher, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	envelope, err := newEnvelope(style)
	if err != nil {
		return nil, err
	}
	codec, err := parseCompression(config.Compression)
	if err != nil {
		return nil, err
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cluster, err := newCluster(ctx, config)
	if err != nil {
		cancel()
		return nil, err
	}
	p := &Publisher{
		envelope:        envelope,
		codec:           codec,
		maxMessageBytes: config.MaxMessageBytes,
		logger:          logger,
		cluster:         cluster,
		sessions:        newSessions(cluster, logger),
		ctx:             ctx,
		cancel:          cancel,
		slots:           make(chan struct{}, concurrentRequests),
		lanes:           map[laneName]*lane{},
		unknown:         map[string]time.Time{},
	}
	p.batches.New = func() any { return &shipment{recordBatch: recordBatch{envelope: envelope, codec: codec}} }
	return p, nil
}

// Publish implements sinks.Publisher.
func (p *Publisher) Publish(ctx context.Context, messages []sinks.Message) []error {
	if len(messages) == 0 {
		return nil
	}
	c := newCall(messages)
	if !p.enter() {
		return c.end(closedError)
	}
	defer p.running.Done()
	if ctx.Err() == nil {
		p.dispatch(ctx, c)
		select {
		case <-c.done:
		case <-ctx.Done():
		case <-p.ctx.Done():
		}
	}
	return c.end(func() error {
		if p.ctx.Err() != nil {
			return closedError()
		}
		return c.unresolved(ctx.Err())
	})
}

func closedError() error {
	return &sinks.Error{Scope: sinks.ScopeSink, Reason: "closed", Err: fmt.Errorf("kafka: %w", errClosed)}
}

// enter holds the publisher open, unless it is closed already.
func (p *Publisher) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.running.Add(1)
	return true
}

// target is a call's messages for one topic.
type target struct {
	topic   string
	indexes []int32
}

// dispatch hands the messages to the lanes, and fails those that have none.
func (p *Publisher) dispatch(ctx context.Context, c *call) {
	targets := group(c.messages)
	names := make([]string, len(targets))
	for i, t := range targets {
		names[i] = t.topic
	}
	topics, err := p.cluster.cachedTopics(ctx, names)
	if err != nil {
		if ctx.Err() != nil || p.ctx.Err() != nil {
			return
		}
		err = &sinks.Error{Scope: sinks.ScopeSink, Reason: judge(err).reason, Err: p.cluster.diagnose(err)}
		for _, t := range targets {
			c.fail(err, t.indexes...)
		}
		return
	}
	var absent []target
	for i, t := range targets {
		if usable(topics[i]) {
			p.assign(c, t, len(topics[i].Partitions))
		} else {
			absent = append(absent, t)
		}
	}
	if len(absent) > 0 {
		p.awaitTopics(ctx, c, absent)
	}
}

func group(messages []sinks.Message) []target {
	var targets []target
	byTopic := map[string]int{}
	last := -1
	for i := range messages {
		topic := messages[i].Destination
		if last < 0 || targets[last].topic != topic {
			at, ok := byTopic[topic]
			if !ok {
				at = len(targets)
				byTopic[topic] = at
				targets = append(targets, target{topic: topic})
				if at == 0 {
					targets[0].indexes = make([]int32, 0, len(messages))
				}
			}
			last = at
		}
		targets[last].indexes = append(targets[last].indexes, int32(i))
	}
	return targets
}

// usable reports whether the metadata suffices to send to the topic.
func usable(t metadata.ResponseTopic) bool {
	code := kafkago.Error(t.ErrorCode)
	return (code == 0 || code == kafkago.LeaderNotAvailable) && len(t.Partitions) > 0
}

// awaitTopics asks the brokers for topics that the metadata does not have. What
// is unknown for longer than the grace fails.
func (p *Publisher) awaitTopics(ctx context.Context, c *call, absent []target) {
	until := time.Now().Add(grace)
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		names := make([]string, len(absent))
		for i, t := range absent {
			names[i] = t.topic
		}
		era := p.cluster.era()
		topics, err := p.cluster.freshTopics(ctx, names)
		if ctx.Err() != nil || p.ctx.Err() != nil {
			return
		}
		if err != nil {
			err = &sinks.Error{Scope: sinks.ScopeSink, Reason: judge(err).reason, Err: p.cluster.diagnose(err)}
			for _, t := range absent {
				c.fail(err, t.indexes...)
			}
			return
		}
		found := map[string]metadata.ResponseTopic{}
		for _, topic := range topics {
			found[topic.Name] = topic
		}
		var left []target
		for _, t := range absent {
			topic, answered := found[t.topic]
			code := kafkago.Error(topic.ErrorCode)
			switch {
			case answered && usable(topic):
				// Kafka-go routes by metadata of its own, which is older.
				p.cluster.reset(era)
				p.known(t.topic)
				p.assign(c, t, len(topic.Partitions))
			case answered && transient(code) && p.waitFor(t.topic, until):
				left = append(left, t)
			default:
				if !answered || code == 0 {
					code = kafkago.UnknownTopicOrPartition
				}
				verdict := judgeCode(code)
				c.fail(&sinks.Error{Scope: sinks.ScopeDestination, Reason: verdict.reason, Err: destinationError(t.topic, code, verdict.reason)}, t.indexes...)
			}
		}
		if len(left) == 0 {
			return
		}
		absent = left
		sleep(ctx, pause)
	}
}

// transient reports whether a topic's state may be one of its creation.
func transient(code kafkago.Error) bool {
	return code == 0 || code == kafkago.UnknownTopicOrPartition || code == kafkago.LeaderNotAvailable
}

// waitFor reports whether to wait for an unknown topic: until the grace ended,
// and not again soon after that.
func (p *Publisher) waitFor(topic string, until time.Time) bool {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Before(p.unknown[topic]) {
		return false
	}
	if now.Before(until) {
		return true
	}
	for name, expires := range p.unknown {
		if now.After(expires) {
			delete(p.unknown, name)
		}
	}
	p.unknown[topic] = now.Add(unknownFor)
	return false
}

func (p *Publisher) known(topic string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.unknown, topic)
}

// assign hands a topic's messages to the lanes of its partitions.
func (p *Publisher) assign(c *call, t target, partitions int) {
	chosen := make([]int32, len(t.indexes))
	counts := make([]int32, partitions)
	for n, i := range t.indexes {
		m := &c.messages[i]
		if m.Key != nil {
			chosen[n] = partitionOf(m.Key, partitions)
		} else {
			chosen[n] = int32((p.keyless.Add(1) - 1) / spread % uint32(partitions))
		}
		counts[chosen[n]]++
	}
	indexes := make([]int32, len(t.indexes))
	segments := make([]*segment, partitions)
	start := int32(0)
	for partition, count := range counts {
		if count > 0 {
			segments[partition] = &segment{call: c, indexes: indexes[start : start : start+count]}
			start += count
		}
	}
	for n, i := range t.indexes {
		s := segments[chosen[n]]
		s.indexes = append(s.indexes, i)
	}
	c.mu.Lock()
	for _, s := range segments {
		if s != nil {
			c.segments = append(c.segments, s)
		}
	}
	c.mu.Unlock()
	for partition, s := range segments {
		if s != nil {
			p.lane(t.topic, int32(partition)).enqueue(s)
		}
	}
}

func (p *Publisher) lane(topic string, partition int32) *lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := laneName{topic, partition}
	l := p.lanes[name]
	if l == nil {
		l = newLane(p, topic, partition)
		p.lanes[name] = l
	}
	return l
}

// slot waits until a request may be sent; release gives the slot back.
func (p *Publisher) slot(ctx context.Context) error {
	select {
	case p.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *Publisher) release() { <-p.slots }

func (p *Publisher) batch() *shipment { return p.batches.Get().(*shipment) }

// recycle keeps a batch's memory for the next, unless one huge message made it
// so large.
func (p *Publisher) recycle(b *shipment) {
	clear(b.entries[:cap(b.entries)])
	clear(b.parts[:cap(b.parts)])
	if cap(b.records) <= 2*batchBytes {
		p.batches.Put(b)
	}
}

// Ping implements sinks.Publisher.
func (p *Publisher) Ping(ctx context.Context) error {
	ctx, leave, err := p.bound(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if err := p.cluster.ping(ctx); err != nil {
		return &sinks.Error{Scope: sinks.ScopeSink, Reason: judge(err).reason, Err: p.cluster.diagnose(err)}
	}
	return nil
}

// Verify implements sinks.Publisher: the topic exists, and each of its
// partitions has a leader.
func (p *Publisher) Verify(ctx context.Context, destination sinks.Destination) error {
	ctx, leave, err := p.bound(ctx)
	if err != nil {
		return err
	}
	defer leave()
	topics, err := p.cluster.freshTopics(ctx, []string{destination.Name})
	if err == nil && len(topics) == 0 {
		err = errors.New("the broker's metadata does not answer for the topic")
	}
	if err != nil {
		return &sinks.Error{Scope: sinks.ScopeSink, Reason: judge(err).reason, Err: p.cluster.diagnose(err)}
	}
	topic := topics[0]
	if code := kafkago.Error(topic.ErrorCode); code != 0 && code != kafkago.LeaderNotAvailable {
		verdict := judgeCode(code)
		return &sinks.Error{Scope: sinks.ScopeDestination, Reason: verdict.reason, Err: destinationError(destination.Name, code, verdict.reason)}
	}
	for _, partition := range topic.Partitions {
		if partition.LeaderID < 0 {
			return &sinks.Error{Scope: sinks.ScopeDestination, Reason: "no_leader",
				Err: fmt.Errorf("kafka topic %s: partition %d has no leader: bring back the brokers that hold it", destination.Name, partition.PartitionIndex)}
		}
	}
	return nil
}

// bound holds the publisher open for a request that ends with ctx or at Close.
func (p *Publisher) bound(ctx context.Context) (context.Context, func(), error) {
	if !p.enter() {
		return nil, nil, closedError()
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(p.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		p.running.Done()
	}, nil
}

// destinationError names the topic, what is wrong with it, and the remedy.
func destinationError(topic string, err error, reason string) error {
	switch reason {
	case "unknown_topic":
		return fmt.Errorf("kafka topic %q does not exist, or this user may not describe it: create it, or correct the route (%w)", topic, err)
	case "invalid_topic":
		return fmt.Errorf("kafka topic %q has a name that Kafka does not allow: correct the route or the row's topic (1 to 249 letters, digits, '.', '_' and '-') (%w)", topic, err)
	case "unauthorized":
		return fmt.Errorf("kafka topic %q: this user may not write to it: grant Write and Describe (%w)", topic, err)
	}
	return fmt.Errorf("kafka topic %q: %w", topic, err)
}

// Close implements sinks.Publisher. It returns once the calls and goroutines
// have ended, which is soon.
func (p *Publisher) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.cluster.close()
	p.running.Wait()
	p.cluster.close() // what a call that was ending dialled
	return nil
}
