package kafka

import (
	"context"
	"encoding/base64"
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

	// turn is held by who asks; it guards connection and seen.
	turn       chan struct{}
	seen       map[string]sight
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

// topicID is a topic's identity: one that is made anew has another. Zero is not
// known.
type topicID [16]byte

// String is how Kafka itself writes it.
func (id topicID) String() string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// sight is a topic as it was last seen.
type sight struct {
	at    time.Time
	topic topicLayout
}

// missingAfter is how long a topic stands for which the brokers tell nothing.
const missingAfter = 30 * time.Second

// topicLayout is one topic. One that does not exist has an error.
type topicLayout struct {
	err      error
	id       topicID
	internal bool
	// leaders are the partitions' leaders, -1 where there is none.
	leaders map[int32]int32
}

func newCluster(bootstrap []string, dialer *kafkago.Dialer, topics []string) *cluster {
	c := &cluster{bootstrap: bootstrap, dialer: dialer, topics: topics, turn: make(chan struct{}, 1), seen: make(map[string]sight)}
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

// follow has get ask for other topics from now on.
func (c *cluster) follow(ctx context.Context, topics []string) error {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	c.topics = topics
	known := *c.layout.Load()
	known.at = time.Time{}
	c.layout.Store(&known)
	return nil
}

// of asks a broker for topics that other members of the group want; nil is all.
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
	var known layout
	err := net.ErrClosed
	if c.connection.usable() {
		known, err = describe(ctx, c.connection, topics)
	}
	if err != nil && ctx.Err() == nil {
		// The broker may be gone since it was last asked.
		if c.connection, err = c.dialAny(ctx); err == nil {
			known, err = describe(ctx, c.connection, topics)
		}
	}
	if err != nil {
		return layout{}, err
	}
	known.at = asked
	c.remember(known, topics)
	return known, nil
}

// remember keeps what is known of topics, and has what was known shortly before
// stand in for topics that are missing: brokers that restart, or do not know
// the topic's leader yet, leave them out for a moment.
func (c *cluster) remember(known layout, topics []string) {
	for _, name := range topics {
		topic := known.topics[name]
		if topic.err == nil && len(topic.leaders) > 0 {
			c.seen[name] = sight{known.at, topic}
			continue
		}
		if last, ok := c.seen[name]; ok && known.at.Sub(last.at) < missingAfter {
			stand := topicLayout{err: topic.err, id: last.topic.id, leaders: make(map[int32]int32)}
			if stand.err == nil {
				stand.err = kafkago.UnknownTopicOrPartition
			}
			for partition := range last.topic.leaders {
				stand.leaders[partition] = -1
			}
			known.topics[name] = stand
		}
	}
}

// describe asks a broker for metadata of topics; nil is all.
func describe(ctx context.Context, connection *connection, topics []string) (layout, error) {
	version, ok := connection.versions[protocol.Metadata]
	if ok && version >= 10 {
		return describeByID(ctx, connection, min(version, 12), topics)
	}
	if version == 9 {
		// It has no ids either, and is not encoded here.
		connection.setVersion(protocol.Metadata, 8)
	}
	message, err := connection.roundTrip(ctx, requestTimeout, &metadata.Request{TopicNames: topics})
	if err != nil {
		return layout{}, err
	}
	return newLayout(message.(*metadata.Response)), nil
}

// describeByID does it in the versions 10 to 12, which know topics' ids.
func describeByID(ctx context.Context, connection *connection, version int16, topics []string) (layout, error) {
	var b []byte
	if topics == nil {
		b = append(b, 0)
	} else {
		b = appendCompactLength(b, len(topics))
	}
	for _, topic := range topics {
		b = append(b, make([]byte, 16)...)
		b = appendTags(appendCompactString(b, topic))
	}
	b = append(b, 0) // creates no topic
	if version <= 10 {
		b = append(b, 0)
	}
	b = appendTags(append(b, 0))
	response, err := connection.exchange(ctx, requestTimeout, protocol.Metadata, version, b, nil)
	if err != nil {
		return layout{}, err
	}
	known := layout{brokers: make(map[int32]kafkago.Broker), topics: make(map[string]topicLayout)}
	r := reader{rest: response}
	r.int32() // throttled
	for range r.compactLength() {
		id, host, port, rack := r.int32(), r.compactString(), r.int32(), r.compactString()
		r.tags()
		known.brokers[id] = kafkago.Broker{ID: int(id), Host: host, Port: int(port), Rack: rack}
	}
	r.compactString() // the cluster
	r.int32()         // the controller
	for range r.compactLength() {
		topic := topicLayout{leaders: make(map[int32]int32)}
		if code := r.int16(); code != 0 {
			topic.err = kafkago.Error(code)
		}
		name := r.compactString()
		topic.id, topic.internal = r.topicID(), r.bool()
		for range r.compactLength() {
			r.int16() // the partition's error
			partition, leader := r.int32(), r.int32()
			r.int32() // the leader's epoch
			r.compactInt32s()
			r.compactInt32s()
			r.compactInt32s()
			r.tags()
			topic.leaders[partition] = leader
		}
		r.int32() // operations
		r.tags()
		known.topics[name] = topic
	}
	if r.err != nil {
		return layout{}, fmt.Errorf("broker %s: its metadata: %w", connection.address, r.err)
	}
	return known, nil
}

func newLayout(response *metadata.Response) layout {
	known := layout{brokers: make(map[int32]kafkago.Broker), topics: make(map[string]topicLayout)}
	for _, b := range response.Brokers {
		known.brokers[b.NodeID] = kafkago.Broker{ID: int(b.NodeID), Host: b.Host, Port: int(b.Port), Rack: b.Rack}
	}
	for _, t := range response.Topics {
		topic := topicLayout{leaders: make(map[int32]int32), internal: t.IsInternal}
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

// dialReplica connects to a replica of a partition as known since a time: to
// the leader, unless a broker is named. It returns the topic's id too, zero
// where the brokers tell none.
func (c *cluster) dialReplica(ctx context.Context, partition partitionID, broker int32, since time.Time) (*connection, topicID, error) {
	known, err := c.get(ctx, since)
	if err != nil {
		return nil, topicID{}, err
	}
	id := known.topics[partition.topic].id
	if near, ok := known.brokers[broker]; ok && broker >= 0 {
		connection, err := dial(ctx, c.dialer, addressOf(near))
		return connection, id, err
	}
	address, err := known.leader(partition.topic, partition.id)
	if err != nil {
		return nil, id, err
	}
	connection, err := dial(ctx, c.dialer, address)
	return connection, id, err
}

// dialLeader connects to the leader of a partition, as known since a time.
func (c *cluster) dialLeader(ctx context.Context, topic string, partition int32, since time.Time) (*connection, error) {
	connection, _, err := c.dialReplica(ctx, partitionID{topic, partition}, noReplica, since)
	return connection, err
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
