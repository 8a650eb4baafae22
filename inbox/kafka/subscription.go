package kafka

import (
	"encoding/binary"
)

// The members of a group tell each other in this form what they want and what
// they get. It is written as version 0, which everybody reads; of later
// versions only the beginning is read, which is the same. Kafka-go's decoder
// would refuse a version 1 without its last field, as kafka-go's own Reader
// writes it.

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
			partitions[topic] = append(partitions[topic], r.int32())
		}
	}
	return partitions, r.err
}
