package kafka

// The members of a group tell each other in this form what they want and what
// they get. It is written as version 0, which everybody reads; of later
// versions only the beginning is read, which is the same. Kafka-go's decoder
// would refuse a version 1 without its last field, as kafka-go's own Reader
// writes it.

// subscription is what a member wants.
type subscription struct {
	topics   []string
	userData []byte
	// owned are the partitions that it goes on with while the group rebalances,
	// of which generation; from cooperative members only.
	owned      map[string][]int32
	generation int32
}

// encode writes version 0, or 2 for cooperative members, whom others have to
// understand.
func (s subscription) encode(cooperative bool) []byte {
	version := int16(0)
	if cooperative {
		version = 2
	}
	b := appendInt16(nil, version)
	b = appendLength(b, len(s.topics))
	for _, topic := range s.topics {
		b = appendString(b, topic)
	}
	b = appendBytes(b, s.userData)
	if cooperative {
		b = appendPartitions(b, s.owned)
		b = appendInt32(b, s.generation)
	}
	return b
}

func decodeSubscription(b []byte) (s subscription, err error) {
	r := reader{rest: b}
	version := r.int16()
	for range r.length() {
		s.topics = append(s.topics, r.string())
	}
	s.userData = r.bytes()
	if r.err != nil {
		return s, r.err
	}
	s.generation = -1
	if version >= 1 && len(r.rest) > 0 { // kafka-go's own Reader ends here
		s.owned = r.partitions()
	}
	if version >= 2 && r.err == nil {
		s.generation = r.int32()
	} else if user := (reader{rest: s.userData}); len(s.userData) == 4 {
		s.generation = user.int32() // as cooperative members of version 1 have it
	}
	return s, r.err
}

// encodeAssignment says which partitions a member gets.
func encodeAssignment(partitions map[string][]int32) []byte {
	return appendBytes(appendPartitions(appendInt16(nil, 0), partitions), nil)
}

func appendPartitions(b []byte, partitions map[string][]int32) []byte {
	b = appendLength(b, len(partitions))
	for topic, ids := range partitions {
		b = appendString(b, topic)
		b = appendLength(b, len(ids))
		for _, id := range ids {
			b = appendInt32(b, id)
		}
	}
	return b
}

// decodeAssignment takes no bytes at all for no partitions: that is what a
// member gets whom the leader forgot.
func decodeAssignment(b []byte) (map[string][]int32, error) {
	if len(b) == 0 {
		return make(map[string][]int32), nil
	}
	r := reader{rest: b}
	r.int16()
	return r.partitions(), r.err
}

func (r *reader) partitions() map[string][]int32 {
	partitions := make(map[string][]int32)
	for range r.length() {
		topic := r.string()
		for range r.length() {
			partitions[topic] = append(partitions[topic], r.int32())
		}
	}
	return partitions
}
