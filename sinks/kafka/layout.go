package kafka

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/metadata"
)

const (
	// layoutAge is when a layout in use is asked for again, beside its use.
	layoutAge = 2 * time.Second
	// layoutExpiry is when it is not used before it was asked for again: nothing
	// was sent to the topic for a while.
	layoutExpiry = 30 * time.Second
	// noLeader stands for the leader of a partition without one.
	noLeader = -1
)

// layout is a topic's partitions as a broker described them. It does not change.
type layout struct {
	asked time.Time
	// leaders has the broker that leads each partition, or noLeader; led are the
	// partitions that have a leader.
	leaders, led []int32
}

// leader returns the broker that leads a partition. Its errors are those that
// kafka-go has for the same.
func (l *layout) leader(topic string, partition int32) (int32, error) {
	switch {
	case l == nil:
		return noLeader, protocol.NewErrNoTopic(topic)
	case int(partition) >= len(l.leaders):
		return noLeader, protocol.NewErrNoPartition(topic, partition)
	case l.leaders[partition] == noLeader:
		return noLeader, protocol.NewErrNoLeader(topic, partition)
	}
	return l.leaders[partition], nil
}

// layouts has the layouts of the topics in use. Nobody is asked for any other
// topic, and nobody for any while nothing is sent: a cluster can have thousands.
type layouts struct {
	cluster *cluster
	// refreshing: a refresh beside the use is under way.
	refreshing atomic.Bool
	// turn is held while renew asks; wanted are the topics of all who wait for it,
	// renewed is when it last did.
	turn    chan struct{}
	renewed time.Time

	mu     sync.RWMutex
	topics map[string]*layout
	wanted map[string]struct{}
	// changes counts how often a topic got another number of partitions, became
	// known or went missing.
	changes uint64
	// brokers are the addresses that brokers advertise.
	brokers map[int32]string
}

func newLayouts(c *cluster) *layouts {
	return &layouts{cluster: c, turn: make(chan struct{}, 1), topics: map[string]*layout{}, wanted: map[string]struct{}{}}
}

// of returns the topic's layout, nil while it is unknown.
func (l *layouts) of(topic string) *layout {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.topics[topic]
}

// version is another number whenever the number of a topic's partitions is.
func (l *layouts) version() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.changes
}

// set keeps a topic's layout, nil for none; its caller holds the mutex.
func (l *layouts) set(topic string, to *layout) {
	known := l.topics[topic]
	if (known == nil) != (to == nil) || known != nil && len(known.leaders) != len(to.leaders) {
		l.changes++
	}
	if to == nil {
		delete(l.topics, topic)
		return
	}
	l.topics[topic] = to
}

// address returns what a broker advertises.
func (l *layouts) address(broker int32) string {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.brokers[broker]
}

// ask asks a broker for the layouts of topics, keeps them and returns the answer.
func (l *layouts) ask(ctx context.Context, topics []string) (*metadata.Response, error) {
	asked := time.Now()
	response, err := l.cluster.metadata(ctx, topics)
	if err != nil {
		return nil, err
	}
	brokers := make(map[int32]string, len(response.Brokers))
	for i := range response.Brokers {
		brokers[response.Brokers[i].NodeID] = addressOf(&response.Brokers[i])
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.brokers = brokers
	for i := range response.Topics {
		t := &response.Topics[i]
		switch known := l.topics[t.Name]; {
		case known != nil && known.asked.After(asked):
		case usable(t):
			l.set(t.Name, newLayout(asked, t))
		default:
			l.set(t.Name, nil)
		}
	}
	return response, nil
}

// renew has a topic's layout asked for after a moment. Partitions whose leader
// went away want it all at once; the first asks for all of them. What its failure
// means shows when the topic is sent to.
func (l *layouts) renew(ctx context.Context, topic string, after time.Time) {
	l.mu.Lock()
	l.wanted[topic] = struct{}{}
	l.mu.Unlock()
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return
	}
	if l.renewedAfter(topic, after) {
		return
	}
	if pause := refreshPause - time.Since(l.renewed); pause > 0 {
		sleep(ctx, pause)
	}
	l.mu.Lock()
	l.wanted[topic] = struct{}{}
	topics := make([]string, 0, len(l.wanted))
	for name := range l.wanted {
		topics = append(topics, name)
	}
	clear(l.wanted)
	l.mu.Unlock()
	_, _ = l.ask(ctx, topics)
	l.renewed = time.Now()
}

// renewedAfter reports whether somebody asked for the topic since it was wanted.
func (l *layouts) renewedAfter(topic string, moment time.Time) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if _, wanted := l.wanted[topic]; wanted {
		return false
	}
	known := l.topics[topic]
	return known == nil || known.asked.After(moment)
}

// refresh asks for topics beside their use.
func (p *Publisher) refresh(topics []string) {
	if !p.layouts.refreshing.CompareAndSwap(false, true) {
		return
	}
	p.running.Go(func() {
		defer p.layouts.refreshing.Store(false)
		_, _ = p.layouts.ask(p.ctx, topics)
	})
}

// usable reports whether the metadata suffices to send to the topic.
func usable(t *metadata.ResponseTopic) bool {
	code := kafkago.Error(t.ErrorCode)
	return (code == 0 || code == kafkago.LeaderNotAvailable) && len(t.Partitions) > 0
}

func newLayout(asked time.Time, t *metadata.ResponseTopic) *layout {
	l := &layout{asked: asked, leaders: make([]int32, len(t.Partitions))}
	for i := range l.leaders {
		l.leaders[i] = noLeader
	}
	for i := range t.Partitions {
		if p := &t.Partitions[i]; p.PartitionIndex >= 0 && int(p.PartitionIndex) < len(l.leaders) && p.LeaderID >= 0 {
			l.leaders[p.PartitionIndex] = p.LeaderID
		}
	}
	for partition, leader := range l.leaders {
		if leader != noLeader {
			l.led = append(l.led, int32(partition))
		}
	}
	return l
}
