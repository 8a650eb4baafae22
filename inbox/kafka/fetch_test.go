package kafka

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/compress/snappy"
)

// encodeBatch is a batch of format 2.
func encodeBatch(codec compress.Compression, attributes int16, base, last, producer int64, records ...record) []byte {
	var content []byte
	for _, r := range records {
		var b []byte
		b = append(b, 0)
		b = binary.AppendVarint(b, 0)
		b = binary.AppendVarint(b, r.offset-base)
		b = appendVarBytes(b, r.key)
		b = appendVarBytes(b, r.value)
		b = binary.AppendVarint(b, int64(len(r.headers)))
		for _, h := range r.headers {
			b = appendVarBytes(b, []byte(h.Key))
			b = appendVarBytes(b, h.Value)
		}
		content = binary.AppendVarint(content, int64(len(b)))
		content = append(content, b...)
	}
	b := appendInt16(nil, attributes|int16(codec))
	b = appendInt32(b, int32(last-base)) //nolint:gosec // small
	b = appendInt64(appendInt64(b, 1000), 2000)
	b = appendInt64(b, producer)
	b = appendInt32(appendInt16(b, 0), 0)
	b = appendLength(b, len(records))
	b = append(b, pack(codec, content)...)
	head := appendInt64(nil, base)
	head = appendLength(head, 9+len(b))
	head = append(appendInt32(head, 0), 2)
	head = binary.BigEndian.AppendUint32(head, crc32.Checksum(b, castagnoli))
	return append(head, b...)
}

// encodeMessage is a message of format 0 or 1.
func encodeMessage(magic int8, codec compress.Compression, offset int64, key, value []byte) []byte {
	b := appendInt8(appendInt8(nil, magic), int8(codec))
	if magic == 1 {
		b = appendInt64(b, 1000)
	}
	b = appendBytes(appendBytes(b, key), value)
	head := appendLength(appendInt64(nil, offset), 4+len(b))
	head = binary.BigEndian.AppendUint32(head, crc32.ChecksumIEEE(b))
	return append(head, b...)
}

func appendVarBytes(b, data []byte) []byte {
	if data == nil {
		return binary.AppendVarint(b, -1)
	}
	return append(binary.AppendVarint(b, int64(len(data))), data...)
}

func pack(codec compress.Compression, content []byte) []byte {
	if codec == compress.None {
		return content
	}
	var b bytes.Buffer
	w := codec.Codec().NewWriter(&b)
	_, err := w.Write(content)
	if err := errors.Join(err, w.Close()); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func newRead(next, stable int64, content ...[]byte) *records {
	r := newRecords(context.Background(), partitionID{"orders", 3}, next, &lease{budget: newBudget(1 << 30), own: 1 << 29})
	r.stable = stable
	r.rest = slices.Concat(content...)
	return r
}

func readOffsets(t *testing.T, r *records) (offsets []int64) {
	t.Helper()
	for {
		found, err := r.read()
		if errors.Is(err, io.EOF) {
			return offsets
		}
		if err != nil {
			t.Fatal(err)
		}
		offsets = append(offsets, found.offset)
	}
}

// Records of aborted transactions are not for consumers; brokers send them all
// the same.
func TestAbortedTransactionsArePassedOver(t *testing.T) {
	batch := func(base, producer int64, attributes int16, offsets ...int64) []byte {
		var list []record
		for _, offset := range offsets {
			list = append(list, record{offset: offset})
		}
		return encodeBatch(compress.None, attributes, base, offsets[len(offsets)-1], producer, list...)
	}
	marker := func(offset, producer int64) []byte { return batch(offset, producer, transactional|control, offset) }
	r := newRead(11, 40,
		batch(10, 7, 0, 10, 11),             // 10 is before what was asked for
		batch(12, 1, transactional, 12, 13), // aborted
		batch(14, 2, transactional, 14),     // committed below
		batch(15, 1, transactional, 15),     // aborted
		marker(16, 1), marker(17, 2),
		batch(18, 1, transactional, 18), // the next transaction of 1, committed
		batch(19, 9, 0, 19),
		batch(20, 2, transactional, 20, 21), // aborted
		marker(22, 1), marker(23, 2),
	)
	r.aborted = []transaction{{1, 12}, {2, 20}}
	if got, want := readOffsets(t, r), []int64{11, 14, 18, 19}; !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
	if r.next != 24 {
		t.Errorf("the next offset is %d", r.next)
	}
}

// Compaction leaves batches whose last records, or all, are gone.
func TestEndOfBatch(t *testing.T) {
	for name, test := range map[string]struct {
		batch []byte
		want  int
	}{
		"without records":        {encodeBatch(compress.None, 0, 10, 14, -1), 0},
		"with earlier ones only": {encodeBatch(compress.Zstd, 0, 8, 14, -1, record{offset: 8}, record{offset: 9}), 0},
		"with one":               {encodeBatch(compress.Gzip, 0, 8, 14, -1, record{offset: 8}, record{offset: 10}), 1},
	} {
		r := newRead(10, 40, test.batch)
		if got := readOffsets(t, r); len(got) != test.want || r.next != 15 {
			t.Errorf("a batch %s: read %v, the next offset is %d, want 15", name, got, r.next)
		}
	}
}

var codecs = []compress.Compression{compress.None, compress.Gzip, compress.Snappy, compress.Lz4, compress.Zstd}

// samples are contents that compress well and badly, in few blocks and in many.
func samples() map[string][][]byte {
	random := make([]byte, 300_000)
	for i := range random {
		random[i] = byte(rand.IntN(256)) //nolint:gosec // not a secret
	}
	var text bytes.Buffer
	for n := range 300 {
		fmt.Fprintf(&text, `{"number":%d,"description":"a product of the usual kind"},`, n)
	}
	return map[string][][]byte{
		"one":       {[]byte("x")},
		"a few":     {[]byte("x"), nil, {}, []byte("yz")},
		"zeros":     slices.Repeat([][]byte{make([]byte, 1_000_000)}, 12),
		"random":    {random, random},
		"documents": slices.Repeat([][]byte{text.Bytes()}, 40),
	}
}

func TestFormatsAndCodecs(t *testing.T) {
	for name, values := range samples() {
		for _, codec := range codecs {
			t.Run(fmt.Sprintf("%s by %s", name, codec), func(t *testing.T) {
				var list []record
				var nested [2][]byte
				for n, value := range values {
					list = append(list, record{offset: 100 + int64(n), key: []byte{'k'}, value: value})
					nested[0] = append(nested[0], encodeMessage(0, 0, 100+int64(n), []byte{'k'}, value)...)
					nested[1] = append(nested[1], encodeMessage(1, 0, int64(n), []byte{'k'}, value)...)
				}
				last := 99 + int64(len(values))
				checkValues(t, "format 2", newRead(100, 1000, encodeBatch(codec, 0, 100, last, -1, list...)), values)
				for magic, content := range nested {
					set := encodeMessage(int8(magic), codec, last, nil, pack(codec, content)) //nolint:gosec // 0 or 1
					if codec == compress.None {
						set = nested[0]
					}
					checkValues(t, fmt.Sprint("format ", magic), newRead(100, 1000, set), values)
				}
			})
		}
	}
	unframed := (&snappy.Codec{Framing: snappy.Unframed})
	var b bytes.Buffer
	w := unframed.NewWriter(&b)
	_, _ = w.Write(encodeMessage(0, 0, 7, nil, []byte("x")))
	_ = w.Close()
	checkValues(t, "snappy without a frame", newRead(0, 10, encodeMessage(0, compress.Snappy, 7, nil, b.Bytes())), [][]byte{[]byte("x")})
}

func checkValues(t *testing.T, what string, r *records, values [][]byte) {
	t.Helper()
	first := int64(-1)
	for n, want := range values {
		got, err := r.read()
		if err != nil {
			t.Fatalf("%s: record %d: %v", what, n, err)
		}
		if first < 0 {
			first = got.offset
		}
		if got.offset != first+int64(n) || !bytes.Equal(got.value, want) || (got.value == nil) != (want == nil) {
			t.Fatalf("%s: record %d: offset %d, %d bytes, want offset %d, %d bytes", what, n, got.offset, len(got.value), first+int64(n), len(want))
		}
	}
	if _, err := r.read(); !errors.Is(err, io.EOF) {
		t.Errorf("%s: after the last record: %v", what, err)
	}
	if last := first + int64(len(values)); r.next != last {
		t.Errorf("%s: the next offset is %d, want %d", what, r.next, last)
	}
}

// Whatever is wrong with a response, it is an error that names the batch.
func TestMalformedBatches(t *testing.T) {
	value := bytes.Repeat([]byte("some text that compresses "), 200)
	var whole [][]byte
	for _, codec := range codecs {
		whole = append(whole, encodeBatch(codec, 0, 0, 1, -1, record{key: value, value: value}, record{offset: 1, value: value}))
		for magic := range int8(2) {
			inner := encodeMessage(magic, 0, 0, nil, value)
			whole = append(whole, encodeMessage(magic, codec, 0, nil, pack(codec, inner)))
		}
	}
	for _, good := range whole {
		for range 500 {
			bad := slices.Clone(good)
			for range 1 + rand.IntN(4) { //nolint:gosec // not a secret
				bad[rand.IntN(len(bad))] ^= byte(1 + rand.IntN(255)) //nolint:gosec // not a secret
			}
			if rand.IntN(3) > 0 { //nolint:gosec // not a secret
				mendChecksum(bad)
			}
			bad = bad[:len(bad)-rand.IntN(2)*rand.IntN(len(bad))] //nolint:gosec // not a secret
			r := newRead(0, 10, bad)
			for {
				_, err := r.read()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					if !strings.Contains(err.Error(), "orders-3: the batch at offset ") {
						t.Fatalf("the error does not name the batch: %v", err)
					}
					if strings.Contains(err.Error(), "runtime error") {
						t.Errorf("%x: %v", bad, err)
					}
					break
				}
			}
		}
	}
}

// mendChecksum lets a changed batch pass.
func mendChecksum(b []byte) {
	if b[magicAt] == 2 {
		binary.BigEndian.PutUint32(b[checksumAt:], crc32.Checksum(b[attributesAt:], castagnoli))
	} else {
		binary.BigEndian.PutUint32(b[lengthAt+4:], crc32.ChecksumIEEE(b[magicAt:]))
	}
}
