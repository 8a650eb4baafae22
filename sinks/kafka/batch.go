package kafka

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/segmentio/kafka-go/compress"

	"github.com/outboxrelay/relay/sinks"
)

// Where a record batch of version 2 has its fields, after the four bytes of
// size that a produce request has before it.
const (
	sizePrefix        = 4
	atLength          = sizePrefix + 8
	atLeaderEpoch     = sizePrefix + 12
	atMagic           = sizePrefix + 16
	atChecksum        = sizePrefix + 17
	atAttributes      = sizePrefix + 21
	atLastOffsetDelta = sizePrefix + 23
	atFirstTimestamp  = sizePrefix + 27
	atMaxTimestamp    = sizePrefix + 35
	atProducerID      = sizePrefix + 43
	atProducerEpoch   = sizePrefix + 51
	atBaseSequence    = sizePrefix + 53
	atCount           = sizePrefix + 57
	atRecords         = sizePrefix + 61
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordBatch is one batch as it goes to the broker. Its memory is reused.
//
// The records carry the time of encoding and not the row's: the broker deletes
// by a record's timestamp, so that a row published after the topic's retention
// would be gone before anybody read it.
type recordBatch struct {
	envelope envelope
	codec    compress.Compression
	// records is the batch before compression, wire what is sent; they are the
	// same slice when nothing is compressed.
	records    []byte
	wire       []byte
	compressed appender
	count      int
}

// begin empties the batch.
func (b *recordBatch) begin() {
	if cap(b.records) < atRecords {
		b.records = make([]byte, atRecords, 16<<10)
	}
	b.records = b.records[:atRecords]
	clear(b.records)
	b.wire, b.count = nil, 0
}

// size is the batch's size in bytes before compression, as the broker counts.
func (b *recordBatch) size() int { return len(b.records) - sizePrefix }

// add appends a record; undo takes it back.
func (b *recordBatch) add(m *sinks.Message) (undo int) {
	start := len(b.records)
	// Two bytes for the length fit all records of 64 to 8191 bytes; others are
	// moved.
	out := b.records
	out = append(out, 0, 0)
	out = append(out, 0, 0) // attributes, timestamp delta
	out = binary.AppendVarint(out, int64(b.count))
	out = appendBytes(out, m.Key)
	out = appendBytes(out, m.Payload)
	out = b.envelope.appendHeaders(out, m)

	length := len(out) - start - 2
	var prefix [binary.MaxVarintLen64]byte
	switch n := binary.PutVarint(prefix[:], int64(length)); {
	case n > 2:
		out = append(out, prefix[2:n]...) // for its length only
		copy(out[start+n:], out[start+2:start+2+length])
		copy(out[start:], prefix[:n])
	case n < 2:
		copy(out[start+n:], out[start+2:])
		out = out[:len(out)-(2-n)]
		copy(out[start:], prefix[:n])
	default:
		copy(out[start:], prefix[:n])
	}
	b.records = out
	b.count++
	return start
}

// undo takes the last record back.
func (b *recordBatch) undo(start int) {
	b.records = b.records[:start]
	b.count--
}

func appendBytes(b, value []byte) []byte {
	if value == nil {
		return append(b, 1) // -1
	}
	b = binary.AppendVarint(b, int64(len(value)))
	return append(b, value...)
}

// finish completes the batch but for what stamp sets.
func (b *recordBatch) finish(now time.Time) error {
	h := b.records
	binary.BigEndian.PutUint32(h[atLeaderEpoch:], ^uint32(0))
	h[atMagic] = 2
	binary.BigEndian.PutUint16(h[atAttributes:], uint16(b.codec))
	binary.BigEndian.PutUint32(h[atLastOffsetDelta:], uint32(b.count-1))
	binary.BigEndian.PutUint64(h[atFirstTimestamp:], uint64(now.UnixMilli()))
	binary.BigEndian.PutUint64(h[atMaxTimestamp:], uint64(now.UnixMilli()))
	binary.BigEndian.PutUint32(h[atCount:], uint32(b.count))
	b.wire = b.records
	if codec := b.codec.Codec(); b.codec != compress.None && codec != nil {
		b.compressed = append(b.compressed[:0], h[:atRecords]...)
		w := codec.NewWriter(&b.compressed)
		_, err := w.Write(b.records[atRecords:])
		if err := firstError(err, w.Close()); err != nil {
			return fmt.Errorf("compress %d records with %s: %w", b.count, b.codec, err)
		}
		b.wire = b.compressed
	}
	binary.BigEndian.PutUint32(b.wire, uint32(len(b.wire)-sizePrefix))
	binary.BigEndian.PutUint32(b.wire[atLength:], uint32(len(b.wire)-atLength-4))
	return nil
}

// stamp sets who sends the batch, by which the broker knows a resent batch, and
// the checksum.
func (b *recordBatch) stamp(by producer, sequence int32) {
	binary.BigEndian.PutUint64(b.wire[atProducerID:], uint64(by.id))
	binary.BigEndian.PutUint16(b.wire[atProducerEpoch:], uint16(by.epoch))
	binary.BigEndian.PutUint32(b.wire[atBaseSequence:], uint32(sequence))
	binary.BigEndian.PutUint32(b.wire[atChecksum:], crc32.Checksum(b.wire[atAttributes:], castagnoli))
}

// detach leaves the memory to a request that may still read it, and goes on
// with a copy.
func (b *recordBatch) detach() {
	same := len(b.wire) > 0 && &b.wire[0] == &b.records[0]
	b.wire = append([]byte(nil), b.wire...)
	if same {
		b.records = b.wire
	} else {
		b.compressed = b.wire
	}
}

// appender is a slice that can be written to.
type appender []byte

func (a *appender) Write(p []byte) (int, error) {
	*a = append(*a, p...)
	return len(p), nil
}

var _ io.Writer = (*appender)(nil)

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
