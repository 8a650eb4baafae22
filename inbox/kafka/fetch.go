package kafka

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
)

// transferTimeout is how long a broker may take to send what it has.
const transferTimeout = 30 * time.Second

const (
	// noReplica means the leader.
	noReplica = -1
	// replicaAge is how long a follower is read before the leader is asked again.
	replicaAge = 5 * time.Minute
)

// readCommitted is an isolation level.
const readCommitted = 1

// fetcher reads one partition from its leader, by a connection of its own: the
// broker answers a connection's requests in turn, and one for an idle
// partition would hold up the others.
type fetcher struct {
	config    *Config
	cluster   *cluster
	partition partitionID

	connection *connection
	// since is how old the knowledge of the leader may be: not from before the
	// assignment, or the last failure.
	since time.Time
	// topic is the identity of what is read; zero before it is known.
	topic topicID
	// epoch is the leader's that wrote the last record that was read, -1 where
	// that is not known.
	epoch int32
	// replica is the broker that the leader named, since moved.
	replica int32
	moved   time.Time
	// reading is the last response; wanted the memory that it wanted, where it
	// was given up for want of it.
	reading *records
	wanted  int
}

// fetch returns records from offset on, or none when there are none within
// FetchWait. What was returned before must not be read any more.
func (f *fetcher) fetch(ctx context.Context, offset int64) (*records, error) {
	f.drop()
	connection, err := f.connect(ctx)
	if err != nil {
		return nil, err
	}
	share := f.cluster.budget.share()
	r := newRecords(ctx, f.partition, offset, &lease{budget: f.cluster.budget, own: share})
	r.mu.Lock()
	defer r.mu.Unlock()
	f.reading = r
	version := connection.versions[protocol.Fetch]
	if version >= 12 && f.topic == (topicID{}) {
		version = 11 // the last one with the topic's name before ids came
	}
	body := f.request(version, offset, min(f.config.FetchBytes, max(share/2, 1)))
	response, err := connection.exchange(ctx, f.config.FetchWait+transferTimeout, protocol.Fetch, version, body, func(size int) error {
		// What a response needed that was given up is waited for at once.
		return r.lease.admit(ctx, max(size, f.wanted))
	})
	f.wanted = 0
	if err == nil {
		err = f.parse(r, version, response)
	}
	if err != nil {
		f.since = time.Now()
		f.replica = noReplica
		r.release()
		return nil, err
	}
	return r, nil
}

// request asks for the records of the partition, in versions 4 to 11, and 13,
// where the topic's id says which one is meant: one that is made anew under the
// same name is not read by mistake.
func (f *fetcher) request(version int16, offset int64, bytes int) []byte {
	flexible := version >= 12
	length, text, tags := appendLength, appendString, func(b []byte) []byte { return b }
	if flexible {
		length, text, tags = appendCompactLength, appendCompactString, appendTags
	}
	b := appendInt32(nil, -1) // no replica
	b = appendInt32(b, milliseconds(f.config.FetchWait))
	b = appendInt32(b, 1)            // MinBytes
	b = appendLength(b, bytes)       // MaxBytes
	b = appendInt8(b, readCommitted) // of transactions
	if version >= 7 {
		b = appendInt32(b, 0) // no session
		b = appendInt32(b, -1)
	}
	b = length(b, 1)
	if flexible {
		b = append(b, f.topic[:]...)
	} else {
		b = text(b, f.partition.topic)
	}
	b = length(b, 1)
	b = appendInt32(b, f.partition.id)
	if version >= 9 {
		b = appendInt32(b, -1) // the leader's epoch
	}
	b = appendInt64(b, offset)
	if flexible {
		b = appendInt32(b, f.epoch) // the last record's
	}
	if version >= 5 {
		b = appendInt64(b, -1) // a follower's first offset
	}
	b = tags(tags(appendLength(b, bytes)))
	if version >= 7 {
		b = length(b, 0) // forgotten topics
	}
	if version >= 11 {
		b = text(b, f.config.Rack)
	}
	return tags(b)
}

func (f *fetcher) parse(records *records, version int16, response []byte) error {
	r := reader{rest: response}
	flexible := version >= 12
	length, tags := r.length, func() {}
	if flexible {
		length, tags = r.compactLength, r.tags
	}
	r.int32() // throttled
	if version >= 7 {
		if code := r.int16(); code != 0 {
			return f.explain("fetch", code)
		}
		r.int32() // session
	}
	if topics := length(); r.err == nil && topics != 1 {
		return fmt.Errorf("%s: the broker answered a fetch without the partition", f.partition)
	}
	if flexible {
		r.topicID()
	} else {
		r.string()
	}
	if partitions := length(); r.err == nil && partitions != 1 {
		return fmt.Errorf("%s: the broker answered a fetch without the partition", f.partition)
	}
	r.int32()
	if code := r.int16(); code != 0 && r.err == nil {
		return f.explain("fetch", code)
	}
	records.end, records.stable = r.int64(), r.int64()
	if version >= 5 {
		r.int64() // the first offset
	}
	for range length() {
		records.aborted = append(records.aborted, transaction{producer: r.int64(), first: r.int64()})
		tags()
	}
	if version >= 11 {
		if near := r.int32(); near >= 0 && r.err == nil {
			f.moveTo(near)
		}
	}
	if flexible {
		records.rest = r.take(r.compactLength())
	} else {
		records.rest = r.nullable(int64(r.int32()))
	}
	records.size = len(response)
	if flexible {
		if end, ok := divergence(&r); ok && r.err == nil {
			return &truncatedError{partition: f.partition, end: min(end, records.next)}
		}
	}
	if r.err != nil {
		return fmt.Errorf("%s: the broker's answer to a fetch: %w", f.partition, r.err)
	}
	slices.SortFunc(records.aborted, func(a, b transaction) int { return cmp.Compare(a.first, b.first) })
	return nil
}

// divergence reads a partition's tagged fields: where the leader's log ends as
// far as it is the one that was read.
func divergence(r *reader) (end int64, ok bool) {
	for range r.count(int64(min(r.uvarint(), math.MaxInt32))) { //nolint:gosec // bounded
		tag := r.uvarint()
		field := reader{rest: r.take(r.count(int64(min(r.uvarint(), math.MaxInt32))))} //nolint:gosec // bounded
		if tag == 0 {
			field.int32() // the epoch
			end = field.int64()
			ok = field.err == nil && end >= 0
		}
	}
	return end, ok
}

// truncatedError says that the partition lost what was read from end on.
type truncatedError struct {
	partition partitionID
	end       int64
}

func (e *truncatedError) Error() string {
	return fmt.Sprintf("%s: the leader has another log from offset %d on", e.partition, e.end)
}

// moveTo has the next fetch go to the replica that the leader names for the
// rack, for as long as metadata may be old elsewhere; then the leader is asked
// again.
func (f *fetcher) moveTo(broker int32) {
	if f.replica == broker {
		return
	}
	f.hangUp()
	f.replica, f.moved = broker, time.Now()
}

// toLeader goes back.
func (f *fetcher) toLeader() {
	if f.replica != noReplica {
		f.replica = noReplica
		f.hangUp()
	}
}

// drop gives up what is left of the last response.
func (f *fetcher) drop() {
	if f.reading != nil {
		f.reading.mu.Lock()
		f.reading.release()
		f.wanted = f.reading.wanted
		if f.reading.seen {
			f.epoch = f.reading.epoch
		}
		f.reading.mu.Unlock()
		f.reading = nil
	}
}

// offset returns the partition's first or last offset: kafkago.FirstOffset or
// LastOffset.
func (f *fetcher) offset(ctx context.Context, which int64) (int64, error) {
	message, err := f.call(ctx, requestTimeout, &listoffsets.Request{
		ReplicaID: -1, IsolationLevel: int8(kafkago.ReadUncommitted),
		Topics: []listoffsets.RequestTopic{{Topic: f.partition.topic, Partitions: []listoffsets.RequestPartition{{
			Partition: f.partition.id, CurrentLeaderEpoch: -1, Timestamp: which,
		}}}},
	})
	if err != nil {
		return 0, err
	}
	topics := message.(*listoffsets.Response).Topics
	if len(topics) != 1 || len(topics[0].Partitions) != 1 {
		return 0, fmt.Errorf("%s: the broker listed no offset", f.partition)
	}
	p := topics[0].Partitions[0]
	if p.ErrorCode != 0 {
		return 0, f.explain("list offsets", p.ErrorCode)
	}
	return p.Offset, nil
}

func (f *fetcher) call(ctx context.Context, limit time.Duration, request protocol.Message) (protocol.Message, error) {
	f.toLeader()
	connection, err := f.connect(ctx)
	if err != nil {
		return nil, err
	}
	message, err := connection.roundTrip(ctx, limit, request)
	if err != nil {
		f.since = time.Now()
	}
	return message, err
}

// recreatedError says that the topic is not the one that was read before.
type recreatedError struct {
	topic    string
	was, now topicID
}

func (e *recreatedError) Error() string {
	return fmt.Sprintf("topic %q was made anew: its id is %s and was %s", e.topic, e.now, e.was)
}

func (f *fetcher) connect(ctx context.Context) (*connection, error) {
	if f.replica != noReplica && time.Since(f.moved) > replicaAge {
		f.toLeader()
	}
	if !f.connection.usable() {
		connection, topic, err := f.cluster.dialReplica(ctx, f.partition, f.replica, f.since)
		if err != nil {
			f.since = time.Now()
			f.replica = noReplica
			return nil, err
		}
		if f.topic == (topicID{}) {
			f.topic = topic
		}
		if topic != f.topic && topic != (topicID{}) {
			connection.close()
			return nil, &recreatedError{topic: f.partition.topic, was: f.topic, now: topic}
		}
		f.connection = connection
	}
	return f.connection, nil
}

// explain names what failed. Whatever it is, the leader may be another one by
// now, unless it is the offset.
func (f *fetcher) explain(what string, code int16) error {
	reason := kafkago.Error(code)
	err := fmt.Errorf("%s: %s: %w", f.partition, what, reason)
	if reason == kafkago.OffsetOutOfRange && f.replica != noReplica {
		// A follower may be behind: only the leader's word counts.
		f.toLeader()
		return fmt.Errorf("%s: %s from a follower: asking the leader", f.partition, what)
	}
	if reason != kafkago.OffsetOutOfRange {
		f.hangUp()
		f.since = time.Now()
	}
	if reason == kafkago.TopicAuthorizationFailed {
		return fmt.Errorf("%w: allow this user READ on the topic", err)
	}
	return err
}

func (f *fetcher) hangUp() {
	if f.connection != nil {
		f.connection.close()
		f.connection = nil
	}
}

// close ends the connection, and gives up what was read last.
func (f *fetcher) close() {
	f.drop()
	f.hangUp()
}
