package sinks

import "time"

// Message is one outbox row on its way to a broker. Its byte slices and
// strings may share memory with the batch that they came in: a Publisher must
// not keep or change them after Publish returned, or a Stream's receipt is done,
// unless it copied them.
type Message struct {
	// ID is the row's message_id, the identity that consumers dedupe by.
	ID [16]byte
	// Sequence is the row's id. Within one topic and key, messages are
	// published in ascending sequence.
	Sequence int64
	// Topic is the logical topic of the row; Destination is what a route made
	// of it: a Kafka topic, or a RabbitMQ routing key.
	Topic       string
	Destination string
	// Exchange is RabbitMQ's exchange; empty means the sink's own.
	Exchange string
	// Key orders messages and is Kafka's record key. A nil key is SQL's null
	// (no order); an empty key that is not nil is a key like any other.
	Key []byte
	// Type is the event type, possibly empty.
	Type string
	// Payload is sent byte for byte; nil is SQL's null (a Kafka tombstone).
	Payload     []byte
	ContentType string
	// Headers are the user's, in the order in which they are sent. Names are
	// unique.
	Headers []Header
	// CreatedAt is the row's created_at, in UTC; the zero time where that is
	// infinite. See Dated.
	CreatedAt time.Time
	// InSequence makes the message part of one sequence of all messages of its
	// destination, whatever their keys, as in a total order. It reaches as far as
	// the broker's own order does: a partition, a queue.
	InSequence bool
	// Replayed marks a message that was published before and is sent again on
	// an operator's request; it carries the header message-replayed: true.
	Replayed bool
}

// Dated reports whether CreatedAt can be told to consumers: RFC 3339 has years of
// four digits, and infinity in none of them. A message that is not dated is sent
// without a time.
func (m *Message) Dated() bool {
	return !m.CreatedAt.IsZero() && m.CreatedAt.Year() >= 1 && m.CreatedAt.Year() <= 9999
}

// OrderedBy returns what the message is ordered by within its destination, and
// whether it is ordered at all.
func (m *Message) OrderedBy() (key string, ordered bool) {
	if m.InSequence {
		return "", true
	}
	return string(m.Key), m.Key != nil
}

// Size is about how many bytes the message takes on the wire: its payload, key and
// headers.
func (m *Message) Size() int {
	size := len(m.Payload) + len(m.Key)
	for i := range m.Headers {
		size += len(m.Headers[i].Name) + len(m.Headers[i].Value)
	}
	return size
}

// Header is a name and its value.
type Header struct {
	Name, Value string
}

// Destination names a place at a broker that messages are sent to.
type Destination struct {
	// Exchange is RabbitMQ's exchange; empty means the sink's own.
	Exchange string
	// Name is a Kafka topic or a RabbitMQ routing key.
	Name string
}
