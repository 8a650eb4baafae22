package inbox

import "time"

// Header is a header of a Kafka record.
type Header struct {
	Name  string
	Value []byte
}

// Properties are what a RabbitMQ message has beside its headers.
type Properties struct {
	MessageID     string
	CorrelationID string
	Type          string
	ContentType   string
	Timestamp     time.Time
}

// Decoder fills in messages from their headers. It knows the relay's three
// styles, `plain`, `cloudevents` and `debezium`, whichever a message has. The
// zero value is for messages of the relay; it may be used concurrently.
type Decoder struct {
	// IDHeader names the header that a foreign producer identifies its
	// messages by. For RabbitMQ it may also be "message_id" or
	// "correlation_id", which are the properties, where there is no header of
	// that name. A value that is not a UUID becomes one by IDFrom, out of the
	// message's topic and the value. A message without this header has an id
	// all the same if it has one of the relay's.
	IDHeader string
	// Namespace is IDFrom's for such values. Zero means a fixed one.
	Namespace ID
}

// Kafka fills in ID, Type, ContentType, Sequence, Time, Replayed, Headers and,
// where the record had none, Key, from the headers of a record. Set Topic
// before. When a name is there twice, the last one counts.
func (d Decoder) Kafka(message *Message, headers []Header) {
}

// RabbitMQ does so from a message's properties and headers, which are of the
// types that AMQP has. Set Topic before.
func (d Decoder) RabbitMQ(message *Message, properties Properties, headers map[string]any) {
}
