package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
)

// transferTimeout is how long a broker may take to send what it has.
const transferTimeout = 30 * time.Second

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
}

// fetch returns records from offset on, or none when there are none within
// FetchWait.
func (f *fetcher) fetch(ctx context.Context, offset int64) (*records, error) {
	return f.request(ctx, offset, f.config.FetchBytes, f.config.FetchWait)
}

func (f *fetcher) request(ctx context.Context, offset int64, bytes int, wait time.Duration) (*records, error) {
	message, err := f.call(ctx, wait+transferTimeout, &fetch.Request{
		ReplicaID: -1, MaxWaitTime: milliseconds(wait), MinBytes: 1, MaxBytes: int32(bytes), //nolint:gosec // Config.check bounds it
		IsolationLevel: int8(kafkago.ReadCommitted), SessionID: 0, SessionEpoch: -1,
		Topics: []fetch.RequestTopic{{Topic: f.partition.topic, Partitions: []fetch.RequestPartition{{
			Partition: f.partition.id, CurrentLeaderEpoch: -1, FetchOffset: offset, LogStartOffset: -1, PartitionMaxBytes: int32(bytes), //nolint:gosec // see above
		}}}},
	})
	if err != nil {
		return nil, err
	}
	response := message.(*fetch.Response)
	if response.ErrorCode != 0 {
		return nil, f.explain("fetch", response.ErrorCode)
	}
	if len(response.Topics) != 1 || len(response.Topics[0].Partitions) != 1 {
		return nil, fmt.Errorf("%s: the broker answered a fetch without the partition", f.partition)
	}
	p := response.Topics[0].Partitions[0]
	if p.ErrorCode != 0 {
		return nil, f.explain("fetch", p.ErrorCode)
	}
	slices.SortFunc(p.AbortedTransactions, func(a, b fetch.ResponseTransaction) int { return int(a.FirstOffset - b.FirstOffset) })
	r := &records{next: offset, end: p.HighWatermark, stable: p.LastStableOffset, aborted: p.AbortedTransactions, dropping: make(map[int64]bool)}
	if stream, ok := p.RecordSet.Records.(*protocol.RecordStream); ok {
		r.batches = stream.Records
	}
	return r, nil
}

// pass returns the offset behind a batch that has no record from offset on.
// Compaction leaves such batches, and kafka-go does not tell where they end; so
// look for the least offset from which the broker no longer sends it.
func (f *fetcher) pass(ctx context.Context, offset int64, r *records) (int64, error) {
	low, high := offset+1, r.stable
	for low < high {
		middle := low + (high-low)/2
		found, err := f.request(ctx, middle, 1, time.Millisecond)
		if err != nil {
			return 0, err
		}
		if base, ok := found.base(); ok && base == r.last {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low, nil
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
	if f.connection == nil || f.connection.broken {
		connection, err := f.cluster.dialLeader(ctx, f.partition.topic, f.partition.id, f.since)
		if err != nil {
			f.since = time.Now()
			return nil, err
		}
		f.connection = connection
	}
	message, err := f.connection.roundTrip(ctx, limit, request)
	if err != nil {
		f.since = time.Now()
	}
	return message, err
}

// explain names what failed. Whatever it is, the leader may be another one by
// now, unless it is the offset.
func (f *fetcher) explain(what string, code int16) error {
	reason := kafkago.Error(code)
	err := fmt.Errorf("%s: %s: %w", f.partition, what, reason)
	if reason != kafkago.OffsetOutOfRange {
		f.close()
		f.since = time.Now()
	}
	if reason == kafkago.TopicAuthorizationFailed {
		return fmt.Errorf("%w: allow this user READ on the topic", err)
	}
	return err
}

func (f *fetcher) close() {
	if f.connection != nil {
		f.connection.close()
		f.connection = nil
	}
}

// record is a message as Kafka has it.
type record struct {
	offset     int64
	time       time.Time
	key, value []byte // nil: null
	headers    []protocol.Header
}

// records are those of one response.
type records struct {
	batches []protocol.RecordReader
	// next is the offset after what has been read or passed over.
	next int64
	// end is the offset after the partition's last record, stable that of
	// which it is decided whether it is part of an aborted transaction.
	end, stable int64
	// last is the first offset of the batch that is read or was read last;
	// seen says that there was one.
	last int64
	seen bool
	// aborted are transactions yet to begin, in the order of their offsets;
	// dropping are producers whose transaction was aborted.
	aborted  []fetch.ResponseTransaction
	dropping map[int64]bool
}

// base is the first offset of the first batch.
func (r *records) base() (int64, bool) {
	if len(r.batches) == 0 {
		return 0, false
	}
	return r.batches[0].(interface{ Offset() int64 }).Offset(), true
}

// read returns the next record, or io.EOF. Broken content is an error.
func (r *records) read() (record, error) {
	for len(r.batches) > 0 {
		r.last, r.seen = r.base()
		if drop := r.aborts(); drop {
			if err := r.drain(); err != nil {
				return record{}, err
			}
			continue
		}
		from := max(r.next, r.last)
		found, err := r.batches[0].ReadRecord()
		if errors.Is(err, io.EOF) {
			r.next = from
			r.batches = r.batches[1:]
			continue
		}
		if err != nil {
			return record{}, err
		}
		wanted, err := load(found)
		if err != nil {
			return record{}, err
		}
		if wanted.offset >= from {
			r.next = wanted.offset + 1
			return wanted, nil
		}
		// A batch is sent whole, also what is before the wanted offset.
	}
	return record{}, io.EOF
}

// stuck reports whether all was read and nothing was there from offset on,
// although the partition goes on.
func (r *records) stuck(offset int64) bool {
	return r.seen && len(r.batches) == 0 && r.next == offset && r.stable > offset
}

// aborts follows the transactions, and reports whether the batch at hand is
// none of the consumer's business.
func (r *records) aborts() bool {
	for len(r.aborted) > 0 && r.aborted[0].FirstOffset <= r.last {
		r.dropping[r.aborted[0].ProducerID] = true
		r.aborted = r.aborted[1:]
	}
	switch batch := r.batches[0].(type) {
	case *protocol.ControlBatch:
		// A commit or an abort: either ends the producer's transaction.
		delete(r.dropping, batch.ProducerID)
		return true
	case *protocol.RecordBatch:
		return batch.Attributes.Transactional() && r.dropping[batch.ProducerID]
	}
	return false
}

// drain passes over a batch.
func (r *records) drain() error {
	batch := r.batches[0]
	r.batches = r.batches[1:]
	r.next = max(r.next, r.last)
	for {
		found, err := batch.ReadRecord()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r.next = max(r.next, found.Offset+1)
		if _, err := load(found); err != nil {
			return err
		}
	}
}

// load copies a record out of kafka-go's buffers, and gives these back.
func load(found *protocol.Record) (r record, err error) {
	r = record{offset: found.Offset, time: found.Time, headers: found.Headers}
	if r.key, err = loadBytes(found.Key); err != nil {
		return r, err
	}
	r.value, err = loadBytes(found.Value)
	return r, err
}

func loadBytes(b protocol.Bytes) ([]byte, error) {
	if b == nil {
		return nil, nil
	}
	defer func() { _ = b.Close() }()
	loaded := make([]byte, b.Len())
	_, err := io.ReadFull(b, loaded)
	return loaded, err
}
