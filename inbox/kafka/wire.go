package kafka

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
)

// What kafka-go does not encode, or not as it is needed here, is written and
// read by these.

var errTruncated = errors.New("it is cut short")

func appendInt8(b []byte, n int8) []byte { return append(b, byte(n)) }

func appendInt16(b []byte, n int16) []byte {
	return binary.BigEndian.AppendUint16(b, uint16(n)) //nolint:gosec // the same bits
}

func appendInt32(b []byte, n int32) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(n)) //nolint:gosec // the same bits
}

func appendInt64(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(n)) //nolint:gosec // the same bits
}

func appendLength(b []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(n)) //nolint:gosec // small, or an int32
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...) //nolint:gosec // topics have at most 249 bytes
}

// appendNullable writes an empty string as null.
func appendNullable(b []byte, s string) []byte {
	if s == "" {
		return appendInt16(b, -1)
	}
	return appendString(b, s)
}

func appendBytes(b, data []byte) []byte {
	if data == nil {
		return binary.BigEndian.AppendUint32(b, math.MaxUint32) // -1: null
	}
	return append(appendLength(b, len(data)), data...)
}

// The compact forms are those of flexible versions.

func appendCompactLength(b []byte, n int) []byte {
	return binary.AppendUvarint(b, uint64(n)+1) //nolint:gosec // not negative
}

func appendCompactString(b []byte, s string) []byte {
	return append(appendCompactLength(b, len(s)), s...)
}

// appendTags ends a structure of a flexible version: without tagged fields.
func appendTags(b []byte) []byte { return append(b, 0) }

// reader reads until something is missing; then everything is zero.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.rest) {
		r.err = errTruncated
		return nil
	}
	taken := r.rest[:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *reader) int8() int8 {
	if b := r.take(1); b != nil {
		return int8(b[0]) //nolint:gosec // the same bits
	}
	return 0
}

func (r *reader) int16() int16 {
	if b := r.take(2); b != nil {
		return int16(binary.BigEndian.Uint16(b)) //nolint:gosec // the same bits
	}
	return 0
}

func (r *reader) int32() int32 {
	if b := r.take(4); b != nil {
		return int32(binary.BigEndian.Uint32(b)) //nolint:gosec // the same bits
	}
	return 0
}

func (r *reader) int64() int64 {
	if b := r.take(8); b != nil {
		return int64(binary.BigEndian.Uint64(b)) //nolint:gosec // the same bits
	}
	return 0
}

func (r *reader) varint() int64 {
	n, size := binary.Varint(r.rest)
	if size <= 0 {
		r.err = errTruncated
		return 0
	}
	r.take(size)
	return n
}

func (r *reader) uvarint() uint64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 {
		r.err = errTruncated
		return 0
	}
	r.take(size)
	return n
}

// length is the number of an array's elements, each of which has a byte at
// least; none for null.
func (r *reader) length() int { return r.count(int64(r.int32())) }

// compactLength is the same in flexible versions.
func (r *reader) compactLength() int {
	return r.count(int64(min(r.uvarint(), math.MaxInt32)) - 1) //nolint:gosec // bounded
}

func (r *reader) count(n int64) int {
	if n > int64(len(r.rest)) {
		r.err = errTruncated
		return 0
	}
	return int(max(n, 0))
}

func (r *reader) string() string { return string(r.take(max(int(r.int16()), 0))) }

func (r *reader) bool() bool { return r.int8() != 0 }

func (r *reader) topicID() (id topicID) {
	copy(id[:], r.take(len(id)))
	return id
}

// compactInt32s passes over an array of numbers.
func (r *reader) compactInt32s() { r.take(4 * r.compactLength()) }

func (r *reader) compactString() string { return string(r.take(r.compactLength())) }

// tags passes over tagged fields.
func (r *reader) tags() {
	for range r.count(int64(min(r.uvarint(), math.MaxInt32))) { //nolint:gosec // bounded
		r.uvarint()
		r.take(r.count(int64(min(r.uvarint(), math.MaxInt32)))) //nolint:gosec // bounded
	}
}

func (r *reader) bytes() []byte {
	n := r.length()
	if n == 0 || r.err != nil {
		return nil
	}
	return slices.Clone(r.take(n))
}

// nullable returns a part of what is read, nil for null.
func (r *reader) nullable(n int64) []byte {
	if n < 0 {
		return nil
	}
	if n > int64(len(r.rest)) {
		r.err = errTruncated
		return nil
	}
	return r.take(int(n))
}
