package sinks

// Style is how a message's attributes are written beside its payload.
type Style string

// The styles; docs/wire.md shows each on each broker.
const (
	// StylePlain writes message-id, message-type, message-sequence,
	// message-time and content-type (RabbitMQ: properties where it has them).
	StylePlain Style = "plain"
	// StyleCloudEvents writes CloudEvents 1.0 in binary mode.
	StyleCloudEvents Style = "cloudevents"
	// StyleDebezium writes what Debezium's outbox EventRouter writes.
	StyleDebezium Style = "debezium"
)

// Envelope is the style and what it needs to know.
type Envelope struct {
	Style Style
	// Source is CloudEvents' source attribute.
	Source string
}
