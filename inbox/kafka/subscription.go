package kafka

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
)

// The members of a group tell each other in this form what they want and what
// they get. It is written as version 0, which everybody reads; of later
// versions only the beginning is read, which is the same. Kafka-go's decoder
// would refuse a version 1 without its last field, as kafka-go's own Reader
// writes it.

var errTruncated = errors.New("the group's metadata is cut short")

// encodeSubscription says which topics a member wants.
func encodeSubscription(topics []string, userData []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, 0)
	b = appendLength(b, len(topics))
	for _, topic := range topics {
		b = appendString(b, topic)
	}
	return appendBytes(b, userData)
}

func decodeSubscription(b []byte) (topics []string, userData []byte, err error) {
	r := reader{rest: b}
	r.take(2)
	for range r.length() {
		topics = append(topics, r.string())
	}
	userData = r.bytes()
	return topics, userData, r.err
}

// encodeAssignment says which partitions a member gets.
func encodeAssignment(partitions map[string][]int32) []byte {
	b := binary.BigEndian.AppendUint16(nil, 0)
	b = appendLength(b, len(partitions))
	for topic, ids := range partitions {
		b = appendString(b, topic)
		b = appendLength(b, len(ids))
		for _, id := range ids {
			b = appendLength(b, int(id))
		}
	}
	return appendBytes(b, nil)
}

// decodeAssignment takes no bytes at all for no partitions: that is what a
// member gets whom the leader forgot.
func decodeAssignment(b []byte) (map[string][]int32, error) {
	partitions := make(map[string][]int32)
	if len(b) == 0 {
		return partitions, nil
	}
	r := reader{rest: b}
	r.take(2)
	for range r.length() {
		topic := r.string()
		for range r.length() {
			partitions[topic] = append(partitions[topic], int32(r.uint32())) //nolint:gosec // it is an int32
		}
	}
	return partitions, r.err
}

func appendLength(b []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(n)) //nolint:gosec // small, or an int32
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...) //nolint:gosec // topics have at most 249 bytes
}

func appendBytes(b, data []byte) []byte {
	if data == nil {
		return binary.BigEndian.AppendUint32(b, math.MaxUint32) // -1: null
	}
	return append(appendLength(b, len(data)), data...)
}

// reader reads until something is missing.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) take(n int) []byte {
	if r.err != nil || n > len(r.rest) {
		r.err = errTruncated
		return make([]byte, min(n, 4))
	}
	taken := r.rest[:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *reader) uint32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }

// length is the number of an array's elements, each of which has a byte at
// least.
func (r *reader) length() int {
	n := int(int32(r.uint32())) //nolint:gosec // it is an int32; -1 is null
	if n > len(r.rest) {
		r.err = errTruncated
		return 0
	}
	return max(n, 0)
}

func (r *reader) string() string {
	n := int(int16(binary.BigEndian.Uint16(r.take(2)))) //nolint:gosec // it is an int16
	if n <= 0 || r.err != nil {
		return ""
	}
	return string(r.take(n))
}

func (r *reader) bytes() []byte {
	n := r.length()
	if n == 0 || r.err != nil {
		return nil
	}
	return slices.Clone(r.take(n))
}
