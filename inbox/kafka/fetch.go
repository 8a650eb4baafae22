package kafka

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
)

// transferTimeout is how long a broker may take to send what it has.
const transferTimeout = 30 * time.Second

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
	body := f.request(connection.versions[protocol.Fetch], offset, min(f.config.FetchBytes, max(share/2, 1)))
	response, err := connection.exchange(ctx, f.config.FetchWait+transferTimeout, protocol.Fetch, body, func(size int) error {
		// What a response needed that was given up is waited for at once.
		return r.lease.admit(ctx, max(size, f.wanted))
	})
	f.wanted = 0
	if err == nil {
		err = f.parse(r, connection.versions[protocol.Fetch], response)
	}
	if err != nil {
		f.since = time.Now()
		r.release()
		return nil, err
	}
	return r, nil
}

// request asks for the records of the partition, in versions 4 to 11.
func (f *fetcher) request(version int16, offset int64, bytes int) []byte {
	b := appendInt32(nil, -1) // no replica
	b = appendInt32(b, milliseconds(f.config.FetchWait))
	b = appendInt32(b, 1)            // MinBytes
	b = appendLength(b, bytes)       // MaxBytes
	b = appendInt8(b, readCommitted) // of transactions
	if version >= 7 {
		b = appendInt32(b, 0) // no session
		b = appendInt32(b, -1)
	}
	b = appendLength(b, 1)
	b = appendString(b, f.partition.topic)
	b = appendLength(b, 1)
	b = appendInt32(b, f.partition.id)
	if version >= 9 {
		b = appendInt32(b, -1) // the leader's epoch
	}
	b = appendInt64(b, offset)
	if version >= 5 {
		b = appendInt64(b, -1) // a follower's first offset
	}
	b = appendLength(b, bytes)
	if version >= 7 {
		b = appendLength(b, 0) // forgotten topics
	}
	if version >= 11 {
		b = appendString(b, "") // the rack
	}
	return b
}

func (f *fetcher) parse(records *records, version int16, response []byte) error {
	r := reader{rest: response}
	r.int32() // throttled
	if version >= 7 {
		if code := r.int16(); code != 0 {
			return f.explain("fetch", code)
		}
		r.int32() // session
	}
	if topics := r.length(); r.err == nil && topics != 1 {
		return fmt.Errorf("%s: the broker answered a fetch without the partition", f.partition)
	}
	r.string()
	if partitions := r.length(); r.err == nil && partitions != 1 {
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
	for range r.length() {
		records.aborted = append(records.aborted, transaction{producer: r.int64(), first: r.int64()})
	}
	if version >= 11 {
		r.int32() // a replica nearby
	}
	records.rest, records.size = r.nullable(int64(r.int32())), len(response)
	if r.err != nil {
		return fmt.Errorf("%s: the broker's answer to a fetch: %w", f.partition, r.err)
	}
	slices.SortFunc(records.aborted, func(a, b transaction) int { return cmp.Compare(a.first, b.first) })
	return nil
}

// drop gives up what is left of the last response.
func (f *fetcher) drop() {
	if f.reading != nil {
		f.reading.mu.Lock()
		f.reading.release()
		f.wanted = f.reading.wanted
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

func (f *fetcher) connect(ctx context.Context) (*connection, error) {
	if !f.connection.usable() {
		connection, err := f.cluster.dialLeader(ctx, f.partition.topic, f.partition.id, f.since)
		if err != nil {
			f.since = time.Now()
			return nil, err
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
