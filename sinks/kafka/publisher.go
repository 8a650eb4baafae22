// Package kafka is the sink for Apache Kafka, on kafka-go's Client.
//
// Each partition has a partition writer with one batch under way, filled by all concurrent
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
	"slices"
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
)

// Publisher sends messages to one Kafka cluster. It implements
// sinks.Streamer.
type Publisher struct {
	envelope        envelope
	codec           compress.Compression
	maxMessageBytes int
	logger          *slog.Logger
	cluster         *cluster
	producers       *producers
	// ctx ends at Close, and with it the writers.
	ctx    context.Context
	cancel context.CancelFunc
	// running are the calls to the publisher's methods and the writers' goroutines.
	running sync.WaitGroup
	slots   chan struct{}
	batches sync.Pool
	// answered is when a broker last answered a request with records, in
	// nanoseconds.
	answered atomic.Int64
	// keyless counts messages without key.
	keyless atomic.Uint32

	mu      sync.Mutex
	closed  bool
	writers map[partitionName]*partitionWriter
	// unknown are topics that were waited for, and until when that holds.
	unknown map[string]time.Time

	layouts *layouts
	avoided avoided
}

type partitionName struct {
	topic     string
	partition int32
}

var (
	_ sinks.Streamer    = (*Publisher)(nil)
	_ sinks.Partitioner = (*Publisher)(nil)
	_ sinks.Throttler   = (*Publisher)(nil)
)

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
	cluster, err := newCluster(ctx, config, logger)
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
		layouts:         newLayouts(cluster),
		producers:       newProducers(cluster, config.Idempotent, logger),
		ctx:             ctx,
		cancel:          cancel,
		slots:           make(chan struct{}, concurrentRequests),
		writers:         map[partitionName]*partitionWriter{},
		unknown:         map[string]time.Time{},
	}
	p.batches.New = func() any { return &requestBatch{recordBatch: recordBatch{envelope: envelope, codec: codec}} }
	return p, nil
}

// Publish implements sinks.Publisher.
func (p *Publisher) Publish(ctx context.Context, messages []sinks.Message) []error {
	return p.Stream(sinks.Window{}).Send(ctx, messages).Results()
}

func closedError() error {
	return &sinks.Error{Scope: sinks.ScopeSink, Reason: "closed", Err: fmt.Errorf("kafka: %w", errClosed)}
}

// Partition implements sinks.Partitioner.
func (p *Publisher) Partition(m *sinks.Message) (partition int32, known bool) {
	if m.Key == nil {
		return 0, false
	}
	layout := p.layouts.of(m.Destination)
	if layout == nil {
		return 0, false
	}
	return partitionOf(m.Key, len(layout.leaders)), true
}

// Layouts implements sinks.Partitioner.
func (p *Publisher) Layouts() uint64 { return p.layouts.version() }

// Throttled implements sinks.Throttler.
func (p *Publisher) Throttled() time.Duration { return p.cluster.throttles.sum() }

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

func (p *Publisher) writer(topic string, partition int32) *partitionWriter {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := partitionName{topic, partition}
	l := p.writers[name]
	if l == nil {
		l = newPartitionWriter(p, topic, partition)
		p.writers[name] = l
	}
	return l
}

func (p *Publisher) batch() *requestBatch { return p.batches.Get().(*requestBatch) }

// recycle keeps a batch's memory for the next, unless one huge message made it
// so large.
func (p *Publisher) recycle(b *requestBatch) {
	clear(b.entries)
	clear(b.parts)
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

// Verify implements sinks.Publisher: the topic exists, each of its partitions has
// a leader, and every leader can be reached where it says that it is.
func (p *Publisher) Verify(ctx context.Context, destination sinks.Destination) error {
	ctx, leave, err := p.bound(ctx)
	if err != nil {
		return err
	}
	defer leave()
	response, err := p.layouts.ask(ctx, []string{destination.Name})
	if err == nil && len(response.Topics) == 0 {
		err = errors.New("the broker's metadata does not answer for the topic")
	}
	if err != nil {
		return &sinks.Error{Scope: sinks.ScopeSink, Reason: judge(err).reason, Err: p.cluster.diagnose(err)}
	}
	topic := response.Topics[0]
	if code := kafkago.Error(topic.ErrorCode); code != 0 && code != kafkago.LeaderNotAvailable {
		return p.topicError(destination.Name, code)
	}
	leads := map[int32][]int32{}
	for _, partition := range topic.Partitions {
		if partition.LeaderID < 0 {
			return &sinks.Error{Scope: sinks.ScopeDestination, Reason: reasonNoLeader,
				Err: fmt.Errorf("kafka topic %s: partition %d has no leader: bring back the brokers that hold it", destination.Name, partition.PartitionIndex)}
		}
		leads[partition.LeaderID] = append(leads[partition.LeaderID], partition.PartitionIndex)
	}
	return p.reachLeaders(ctx, destination.Name, response, leads)
}

// reachLeaders reaches the brokers that lead a topic's partitions, all at once,
// and reports the first that is not.
func (p *Publisher) reachLeaders(ctx context.Context, topic string, response *metadata.Response, leads map[int32][]int32) error {
	failures := make([]error, len(response.Brokers))
	var all sync.WaitGroup
	for i := range response.Brokers {
		broker := &response.Brokers[i]
		partitions := leads[broker.NodeID]
		if len(partitions) == 0 {
			continue
		}
		all.Go(func() {
			if err := p.cluster.reach(ctx, broker.NodeID, response.ClusterID); err != nil {
				slices.Sort(partitions)
				failures[i] = &sinks.Error{Scope: sinks.ScopeDestination, Reason: judge(err).reason,
					Err: fmt.Errorf("kafka topic %q: broker %d leads partition %d and advertises %s, where it is not reached from here: correct the broker's advertised.listeners, or open the network to that address (%w)",
						topic, broker.NodeID, partitions[0], addressOf(broker), err)}
			}
		})
	}
	all.Wait()
	failures = slices.DeleteFunc(failures, func(err error) bool { return err == nil })
	if len(failures) == 0 {
		return nil
	}
	return failures[0]
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

// topicError is what the metadata says of a topic that cannot be written to.
func (p *Publisher) topicError(topic string, code kafkago.Error) error {
	verdict := judgeCode(code)
	scope := verdict.scope
	if scope == sinks.ScopePartition { // all of them
		scope = sinks.ScopeDestination
	}
	return &sinks.Error{Scope: scope, Permanent: verdict.permanent, Reason: verdict.reason, Err: p.destinationError(topic, code, verdict.reason)}
}

// destinationError names the topic, what is wrong with it, and the remedy.
func (p *Publisher) destinationError(topic string, err error, reason string) error {
	switch reason {
	case reasonUnknownTopic:
		return fmt.Errorf("kafka topic %q does not exist, or this user may not describe it: create it, or correct the route (%w)", topic, err)
	case reasonInvalidTopic:
		return fmt.Errorf("kafka topic %q has a name that Kafka does not allow: correct the route or the row's topic (1 to 249 letters, digits, '.', '_' and '-') (%w)", topic, err)
	case reasonUnauthorized:
		return fmt.Errorf("kafka topic %q: this user may not write to it: grant Write and Describe (%w)", topic, err)
	}
	switch {
	case errors.Is(err, kafkago.UnsupportedForMessageFormat):
		return fmt.Errorf("kafka topic %q cannot hold record headers: raise its message.format.version to 0.11.0 or newer (%w)", topic, err)
	case errors.Is(err, kafkago.UnsupportedCompressionType):
		return fmt.Errorf("kafka topic %q: the broker does not take compression %s: change the sink's compression, or the broker's and topic's compression.type (%w)", topic, p.codec, err)
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
	p.cancel()
	p.mu.Unlock()
	p.cluster.close()
	p.running.Wait()
	p.cluster.close() // what a call that was ending dialled
	return nil
}
