package kafka

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"

	"github.com/segmentio/kafka-go/protocol"
)

// record is a message as Kafka has it.
type record struct {
	offset     int64
	time       time.Time
	key, value []byte // nil: null
	headers    []protocol.Header
	// size is what it takes of memory.
	size int
}

// transaction is one that was aborted.
type transaction struct{ producer, first int64 }

// records are those of one response, decoded as they are read: what is in
// memory is the response, one decompressor and one record.
type records struct {
	partition partitionID
	// next is the offset after what has been read or passed over.
	next int64
	// end is the offset after the partition's last record, stable that of
	// which it is decided whether it is part of an aborted transaction.
	end, stable int64
	// seen says that there was a batch.
	seen bool
	// epoch is the leader's that wrote the batch at hand, -1 before the first.
	epoch int32
	// aborted are transactions yet to begin, in the order of their offsets;
	// dropping are producers whose transaction was aborted.
	aborted  []transaction
	dropping map[int64]bool

	// mu guards what follows: the response may be given up while nobody reads.
	mu    sync.Mutex
	rest  []byte
	size  int // of the response
	batch *batch
	lease *lease
	ctx   context.Context //nolint:containedctx // reading may wait for memory
	// wanted is the memory that it wanted, where it was given up.
	wanted int
}

// batch is the one at hand.
type batch struct {
	base, last int64
	source     io.Closer
	// read returns the next record, or io.EOF.
	read func() (record, error)
}

func newRecords(ctx context.Context, partition partitionID, next int64, l *lease) *records {
	r := &records{partition: partition, next: next, epoch: -1, dropping: make(map[int64]bool), lease: l, ctx: ctx}
	l.evict = r.evict
	return r
}

// read returns the next record, or io.EOF, where records may follow from next
// on. Content that is broken is an error.
func (r *records) read() (found record, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	err = guard(func() error {
		found, err = r.find()
		return err
	})
	if err == nil {
		return found, nil
	}
	at := r.next
	if r.batch != nil {
		at = r.batch.base
	}
	r.release()
	if yield, ok := errors.AsType[yieldError](err); ok {
		r.wanted = yield.wanted
		return record{}, io.EOF
	}
	if !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s: the batch at offset %d: %w", r.partition, at, err)
	}
	return record{}, err
}

func (r *records) find() (record, error) {
	for {
		if r.batch == nil {
			if err := r.open(); err != nil {
				return record{}, err
			}
			continue
		}
		found, err := r.batch.read()
		switch {
		case errors.Is(err, io.EOF):
			r.next = max(r.next, r.batch.last+1)
			r.shut()
		case errors.Is(err, io.ErrUnexpectedEOF):
			return record{}, errTruncated
		case err != nil:
			return record{}, err
		case found.offset >= r.next:
			r.next = found.offset + 1
			return found, nil
		}
		// A batch is sent whole, also what is before the wanted offset.
	}
}

// The places of a batch's fields. Formats 0 and 1, which have no batches but
// single messages, agree with format 2 on the first three.
const (
	offsetAt     = 0
	lengthAt     = 8
	magicAt      = 16
	batchHeader  = 61
	epochAt      = 12
	checksumAt   = 17
	attributesAt = 21
	lastDeltaAt  = 23
	firstTimeAt  = 27
	maxTimeAt    = 35
	producerAt   = 43
	countAt      = 57
)

const (
	codecMask     = 7
	logAppendTime = 1 << 3
	transactional = 1 << 4
	control       = 1 << 5
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// open begins the next batch. It returns io.EOF where none is whole.
func (r *records) open() error {
	if len(r.rest) <= magicAt {
		return r.incomplete()
	}
	size := int64(lengthAt+4) + int64(int32(binary.BigEndian.Uint32(r.rest[lengthAt:]))) //nolint:gosec // it is an int32
	base := int64(binary.BigEndian.Uint64(r.rest[offsetAt:]))                            //nolint:gosec // it is an int64
	switch magic := r.rest[magicAt]; {
	case size <= magicAt:
		return fmt.Errorf("it is corrupt: its length is %d", size)
	case size > int64(len(r.rest)):
		return r.incomplete()
	case magic > 2:
		return fmt.Errorf("it has format %d, and this consumer reads 0, 1 and 2", magic)
	case magic == 2:
		return r.openBatch(base, r.cut(int(size)))
	default:
		return r.openMessage(base, r.cut(int(size)))
	}
}

func (r *records) cut(size int) []byte {
	r.seen = true
	b := r.rest[:size:size]
	r.rest = r.rest[size:]
	return b
}

// incomplete tells the end of a response, which may cut off its last batch,
// from a response without a whole one.
func (r *records) incomplete() error {
	if len(r.rest) > 0 && !r.seen {
		return errTruncated
	}
	return io.EOF
}

func (r *records) openBatch(base int64, b []byte) error {
	if len(b) < batchHeader {
		return errTruncated
	}
	if want, got := binary.BigEndian.Uint32(b[checksumAt:]), crc32.Checksum(b[attributesAt:], castagnoli); want != got {
		return checksumError(want, got)
	}
	r.epoch = int32(binary.BigEndian.Uint32(b[epochAt:])) //nolint:gosec // it is an int32
	f := reader{rest: b[attributesAt:]}
	attributes, lastDelta := f.int16(), f.int32()
	first, newest, producer := f.int64(), f.int64(), f.int64()
	f.take(countAt - producerAt - 8)
	count := f.int32()
	last := base + int64(lastDelta)
	r.batch = &batch{base: base, last: last, read: func() (record, error) { return record{}, io.EOF }}
	if r.passes(base, producer, attributes) || last < r.next || count == 0 {
		return nil
	}
	source, err := r.decompress(int8(attributes&codecMask), b[batchHeader:])
	if err != nil {
		return err
	}
	input := bufio.NewReader(source)
	r.batch.source = source
	r.batch.read = func() (record, error) {
		if count <= 0 {
			return record{}, io.EOF
		}
		count--
		found, err := readRecord(input, base, first)
		if attributes&logAppendTime != 0 {
			found.time = time.UnixMilli(newest)
		}
		return found, err
	}
	return nil
}

// passes follows the transactions, and reports whether a batch is none of the
// consumer's business.
func (r *records) passes(base, producer int64, attributes int16) bool {
	for len(r.aborted) > 0 && r.aborted[0].first <= base {
		r.dropping[r.aborted[0].producer] = true
		r.aborted = r.aborted[1:]
	}
	if attributes&control != 0 {
		// A commit or an abort: either ends the producer's transaction.
		delete(r.dropping, producer)
		return true
	}
	return attributes&transactional != 0 && r.dropping[producer]
}

// readRecord reads a record of format 2.
func readRecord(input *bufio.Reader, base, first int64) (record, error) {
	length, err := binary.ReadVarint(input)
	if err != nil {
		return record{}, unexpected(err)
	}
	if length < 0 || length > 1<<31 {
		return record{}, fmt.Errorf("it is corrupt: a record has a length of %d", length)
	}
	b, err := readAll(input, int(length))
	if err != nil {
		return record{}, unexpected(err)
	}
	r := reader{rest: b}
	r.int8() // attributes
	found := record{time: time.UnixMilli(first + r.varint()), size: len(b)}
	found.offset = base + r.varint()
	found.key = r.nullable(r.varint())
	found.value = r.nullable(r.varint())
	headers := r.count(r.varint())
	if headers > 0 {
		found.headers = make([]protocol.Header, headers)
	}
	for i := range found.headers {
		found.headers[i].Key = string(r.take(r.count(r.varint())))
		found.headers[i].Value = r.nullable(r.varint())
	}
	if r.err != nil {
		return record{}, fmt.Errorf("it is corrupt: the record at offset %d: %w", found.offset, r.err)
	}
	return found, nil
}

// unexpected is an end where there has to be more.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func checksumError(want, got uint32) error {
	return fmt.Errorf("it is corrupt: its checksum is %08x and not %08x: if all replicas have it so, set the group's offset behind it", got, want)
}

// shut ends the batch at hand.
func (r *records) shut() {
	if r.batch != nil && r.batch.source != nil {
		_ = r.batch.source.Close()
	}
	r.batch = nil
}

// release gives back what the response takes. What was not read of it is not
// read any more.
func (r *records) release() {
	r.shut()
	r.rest = nil
	r.lease.release()
}

// evict releases a response that nobody reads at the moment.
func (r *records) evict() bool {
	if !r.mu.TryLock() {
		return false
	}
	defer r.mu.Unlock()
	if r.lease.common == 0 {
		return false
	}
	r.wanted = max(r.wanted, r.lease.most)
	r.release()
	return true
}

// decompress returns a reader of content, which takes its part of the budget.
func (r *records) decompress(codec int8, content []byte) (io.ReadCloser, error) {
	return decompress(codec, content, func(bytes int) error { return r.lease.grow(r.ctx, r.size+bytes) })
}

// clone copies what a record keeps of a buffer that goes on being used.
func clone(b []byte) []byte {
	if b == nil {
		return nil
	}
	return append(make([]byte, 0, len(b)), b...) // not nil where it is empty
}
