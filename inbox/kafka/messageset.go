package kafka

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

// Formats 0 and 1 of records, which Kafka wrote before 0.10 and 0.11 and still
// has where a segment is as old. A message has its offset; a compressed one
// wraps others in its value, and has the offset of the last of them. In format
// 1 those count from the first; in format 0 they have their own.

// openMessage begins a message, alone or with those that it wraps.
func (r *records) openMessage(offset int64, b []byte) error {
	outer, codec, err := parseMessage(offset, b[lengthAt+4:])
	if err != nil {
		return err
	}
	r.batch = &batch{base: offset, last: offset, read: func() (record, error) { return record{}, io.EOF }}
	if offset < r.next {
		return nil
	}
	if codec == 0 {
		outer.key, outer.value = clone(outer.key), clone(outer.value)
		read := false
		r.batch.read = func() (record, error) {
			if read {
				return record{}, io.EOF
			}
			read = true
			return outer, nil
		}
		return nil
	}
	first := int64(0)
	if b[magicAt] == 1 {
		last, err := r.lastOf(codec, outer.value)
		if err != nil {
			return err
		}
		first = offset - last
	}
	source, err := r.decompress(codec, outer.value)
	if err != nil {
		return err
	}
	r.batch.source = source
	input := bufio.NewReader(source)
	logTime := b[magicAt] == 1 && b[magicAt+1]&logAppendTime != 0
	r.batch.read = func() (record, error) {
		inner, codec, err := readMessage(input)
		if err == nil && codec != 0 {
			err = errors.New("it is corrupt: a compressed message is inside a compressed one")
		}
		inner.offset += first
		if logTime {
			inner.time = outer.time
		}
		return inner, err
	}
	return nil
}

// lastOf returns the offset, inside its wrapper, of the last message.
func (r *records) lastOf(codec int8, wrapped []byte) (last int64, err error) {
	source, err := r.decompress(codec, wrapped)
	if err != nil {
		return 0, err
	}
	defer func() { _ = source.Close() }()
	input := bufio.NewReader(source)
	for {
		var head [lengthAt + 4]byte
		if _, err := io.ReadFull(input, head[:]); errors.Is(err, io.EOF) {
			return last, nil
		} else if err != nil {
			return 0, err
		}
		last = int64(binary.BigEndian.Uint64(head[:]))                 //nolint:gosec // it is an int64
		size := int64(int32(binary.BigEndian.Uint32(head[lengthAt:]))) //nolint:gosec // it is an int32
		if _, err := io.CopyN(io.Discard, input, max(size, 0)); err != nil || size < 0 {
			return 0, errTruncated
		}
	}
}

// readMessage reads the next one of those that are wrapped, or io.EOF.
func readMessage(input io.Reader) (record, int8, error) {
	var head [lengthAt + 4]byte
	if _, err := io.ReadFull(input, head[:]); err != nil {
		return record{}, 0, err
	}
	size := int32(binary.BigEndian.Uint32(head[lengthAt:])) //nolint:gosec // it is an int32
	if size < 0 {
		return record{}, 0, fmt.Errorf("it is corrupt: a message has a length of %d", size)
	}
	b, err := readAll(input, int(size))
	if err != nil {
		return record{}, 0, unexpected(err)
	}
	return parseMessage(int64(binary.BigEndian.Uint64(head[:])), b) //nolint:gosec // it is an int64
}

// parseMessage decodes a message behind its offset and length.
func parseMessage(offset int64, b []byte) (record, int8, error) {
	r := reader{rest: b}
	want := uint32(r.int32()) //nolint:gosec // the same bits
	if got := crc32.ChecksumIEEE(r.rest); r.err == nil && want != got {
		return record{}, 0, checksumError(want, got)
	}
	magic, attributes := r.int8(), r.int8()
	found := record{offset: offset, size: len(b)}
	if magic == 1 {
		if stamp := r.int64(); stamp >= 0 {
			found.time = time.UnixMilli(stamp)
		}
	}
	found.key = r.nullable(int64(r.int32()))
	found.value = r.nullable(int64(r.int32()))
	if r.err != nil || magic < 0 || magic > 1 {
		return record{}, 0, fmt.Errorf("it is corrupt: the message at offset %d: %w", offset, errors.Join(r.err, fmt.Errorf("format %d", magic)))
	}
	return found, attributes & codecMask, nil
}
