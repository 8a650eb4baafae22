package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/metadata"
)

// cluster knows which broker leads which partition. It may be used
// concurrently.
type cluster struct {
	bootstrap []string
	dialer    *kafkago.Dialer
	topics    []string
	// budget bounds what is in memory of all that is read.
	budget *budget

	// turn is held by who asks; it guards connection.
	turn       chan struct{}
	connection *connection
	// layout is what was last heard. Who dials a broker reads it without a
	// turn: whoever has it may be waiting for a broker that is gone.
	layout atomic.Pointer[layout]
}

// layout is what a broker said of the topics.
type layout struct {
	at      time.Time
	brokers map[int32]kafkago.Broker
	topics  map[string]topicLayout
}

// topicLayout is one topic. One that does not exist has an error.
type topicLayout struct {
	err error
	// leaders are the partitions' leaders, -1 where there is none.
	leaders map[int32]int32
}

func newCluster(bootstrap []string, dialer *kafkago.Dialer, topics []string) *cluster {
	c := &cluster{bootstrap: bootstrap, dialer: dialer, topics: topics, turn: make(chan struct{}, 1)}
	c.layout.Store(new(layout))
	return c
}

// get returns what is known since a time, asking a broker where that is older.
// All who ask because of the same event so get the same answer.
func (c *cluster) get(ctx context.Context, since time.Time) (layout, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return layout{}, context.Cause(ctx)
	}
	if known := c.layout.Load(); known.at.After(since) {
		return *known, nil
	}
	known, err := c.ask(ctx, c.topics)
	if err != nil {
		return layout{}, err
	}
	c.layout.Store(&known)
	return known, nil
}

// of asks a broker for topics that other members of the group want.
func (c *cluster) of(ctx context.Context, topics []string) (layout, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return layout{}, context.Cause(ctx)
	}
	return c.ask(ctx, topics)
}

// ask gets metadata from any broker, by a connection that is kept.
func (c *cluster) ask(ctx context.Context, topics []string) (layout, error) {
	asked := time.Now()
	request := &metadata.Request{TopicNames: topics}
	var message protocol.Message
	err := net.ErrClosed
	if c.connection.usable() {
		message, err = c.connection.roundTrip(ctx, requestTimeout, request)
	}
	if err != nil && ctx.Err() == nil {
		// The broker may be gone since it was last asked.
		if c.connection, err = c.dialAny(ctx); err == nil {
			message, err = c.connection.roundTrip(ctx, requestTimeout, request)
		}
	}
	if err != nil {
		return layout{}, err
	}
	return newLayout(asked, message.(*metadata.Response)), nil
}

func newLayout(asked time.Time, response *metadata.Response) layout {
	known := layout{at: asked, brokers: make(map[int32]kafkago.Broker), topics: make(map[string]topicLayout)}
	for _, b := range response.Brokers {
		known.brokers[b.NodeID] = kafkago.Broker{ID: int(b.NodeID), Host: b.Host, Port: int(b.Port), Rack: b.Rack}
	}
	for _, t := range response.Topics {
		topic := topicLayout{leaders: make(map[int32]int32)}
		if t.ErrorCode != 0 {
			topic.err = kafkago.Error(t.ErrorCode)
		}
		for _, p := range t.Partitions {
			topic.leaders[p.PartitionIndex] = p.LeaderID
		}
		known.topics[t.Name] = topic
	}
	return known
}

// dialAny connects to one of the configured brokers or, failing that, one that
// was in the cluster when it was last heard of. It needs no turn.
func (c *cluster) dialAny(ctx context.Context) (*connection, error) {
	addresses := slices.Clone(c.bootstrap)
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	brokers := c.layout.Load().brokers
	for _, id := range slices.Sorted(maps.Keys(brokers)) {
		if address := addressOf(brokers[id]); !slices.Contains(addresses, address) {
			addresses = append(addresses, address)
		}
	}
	var errs []error
	for _, address := range addresses {
		connection, err := dial(ctx, c.dialer, address)
		if err == nil {
			return connection, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// dialLeader connects to the leader of a partition, as known since a time.
func (c *cluster) dialLeader(ctx context.Context, topic string, partition int32, since time.Time) (*connection, error) {
	known, err := c.get(ctx, since)
	if err != nil {
		return nil, err
	}
	address, err := known.leader(topic, partition)
	if err != nil {
		return nil, err
	}
	return dial(ctx, c.dialer, address)
}

func (l layout) leader(topic string, partition int32) (address string, err error) {
	t := l.topics[topic]
	leader, ok := t.leaders[partition]
	switch {
	case t.err != nil:
		return "", fmt.Errorf("topic %q: %w", topic, t.err)
	case !ok:
		return "", fmt.Errorf("topic %q: partition %d: %w", topic, partition, kafkago.UnknownTopicOrPartition)
	}
	broker, ok := l.brokers[leader]
	if !ok {
		return "", fmt.Errorf("topic %q: partition %d: %w", topic, partition, kafkago.LeaderNotAvailable)
	}
	return addressOf(broker), nil
}

// counts are the numbers of partitions of topics.
func (l layout) counts(topics []string) map[string]int {
	counts := make(map[string]int, len(topics))
	for _, topic := range topics {
		counts[topic] = len(l.topics[topic].leaders)
	}
	return counts
}

// partitions are those of topics, as balancers want them.
func (l layout) partitions(topics []string) (list []kafkago.Partition) {
	for _, topic := range topics {
		leaders := l.topics[topic].leaders
		for _, id := range slices.Sorted(maps.Keys(leaders)) {
			list = append(list, kafkago.Partition{Topic: topic, ID: int(id), Leader: l.brokers[leaders[id]]})
		}
	}
	return list
}

func addressOf(broker kafkago.Broker) string {
	return net.JoinHostPort(broker.Host, strconv.Itoa(broker.Port))
}

// close ends the connection; nobody may be asking.
func (c *cluster) close() {
	if c.connection != nil {
		c.connection.close()
	}
}
