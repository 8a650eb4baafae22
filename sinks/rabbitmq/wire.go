package rabbitmq

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/internal/uuid"
	"github.com/outboxrelay/relay/sinks"
)

// Limits of AMQP 0-9-1. A violation closes the whole connection, with every
// message in flight on it, so messages are measured before they are sent.
const (
	// shortString is the size in bytes of names, routing keys and properties
	// at most.
	shortString = 255
	// frameOverhead is what surrounds a frame's payload.
	frameOverhead = 8
	// headerFixed is a content header's payload without its properties: class,
	// weight, body size, property flags.
	headerFixed = 2 + 2 + 8 + 2
	// defaultFrameMax is RabbitMQ's frame_max and what this client asks for.
	defaultFrameMax = 131072
)

// The headers that this sink writes.
const (
	headerKey      = "message-key"
	headerSequence = "message-sequence"
	headerReplayed = "message-replayed"

	headerEventID   = "id"
	headerEventType = "eventType"

	cloudEvents = "cloudEvents_"
)

// encoder turns messages into publishings. It is not for concurrent use.
type encoder struct {
	envelope   sinks.Envelope
	persistent bool
	// headers is reused for each message: amqp091 has written it to the
	// connection's buffer when PublishWithDeferredConfirm returns.
	headers amqp.Table
}

// publishing returns m as it goes over the wire; it is valid until the next
// call.
//
// The properties message_id, type, content_type and timestamp (whole seconds)
// are set in every style: they are where RabbitMQ's tools and client libraries
// look. message-sequence is a 64-bit integer, the one thing that is not text:
// AMQP's tables are typed and every client reads it as its own integer type
// (on Kafka, whose headers are bytes, it is decimal text).
func (e *encoder) publishing(m *sinks.Message) amqp.Publishing {
	if e.headers == nil {
		e.headers = make(amqp.Table, 16)
	}
	clear(e.headers)
	for _, header := range m.Headers {
		if !e.reserved(header.Name) {
			e.headers[header.Name] = header.Value
		}
	}
	id := messageID(m.ID)
	if m.Key != nil {
		e.headers[headerKey] = string(m.Key)
	}
	if m.Replayed {
		e.headers[headerReplayed] = "true"
	}
	switch e.envelope.Style {
	case sinks.StyleCloudEvents:
		e.headers[cloudEvents+"specversion"] = "1.0"
		e.headers[cloudEvents+"id"] = id
		e.headers[cloudEvents+"source"] = e.envelope.Source
		e.headers[cloudEvents+"type"] = cmp.Or(m.Type, m.Topic) // must not be empty
		if m.Dated() {
			e.headers[cloudEvents+"time"] = m.CreatedAt.UTC().Format(time.RFC3339Nano)
		}
		if m.Key != nil {
			e.headers[cloudEvents+"subject"] = string(m.Key)
		}
	case sinks.StyleDebezium:
		e.headers[headerEventID] = id
		e.headers[headerEventType] = m.Type
	default:
		e.headers[headerSequence] = m.Sequence
	}
	publishing := amqp.Publishing{
		Headers:      e.headers,
		ContentType:  m.ContentType,
		DeliveryMode: amqp.Transient,
		MessageId:    id,
		Type:         m.Type,
		Body:         m.Payload,
	}
	if m.Dated() && m.CreatedAt.Unix() >= 0 { // AMQP knows no time before 1970
		publishing.Timestamp = m.CreatedAt
	}
	if e.persistent {
		publishing.DeliveryMode = amqp.Persistent
	}
	return publishing
}

// reserved reports whether a header of this name is the relay's. A user's is
// left out, also where the relay writes none: an application that passes on the
// headers of what it received must claim neither a key nor a replay.
func (e *encoder) reserved(name string) bool {
	switch name {
	case headerKey, headerReplayed:
		return true
	}
	switch e.envelope.Style {
	case sinks.StyleCloudEvents:
		switch strings.TrimPrefix(name, cloudEvents) {
		case "specversion", "id", "source", "type", "time", "subject":
			return strings.HasPrefix(name, cloudEvents)
		}
		return false
	case sinks.StyleDebezium:
		return name == headerEventID || name == headerEventType
	default:
		return name == headerSequence
	}
}

// headerFrame returns the size in bytes of the content header's frame.
func headerFrame(p *amqp.Publishing) int {
	size := frameOverhead + headerFixed + 1 // delivery mode
	for _, text := range [...]string{p.ContentType, p.MessageId, p.Type} {
		if text != "" {
			size += 1 + len(text)
		}
	}
	if !p.Timestamp.IsZero() {
		size += 8
	}
	if len(p.Headers) > 0 {
		size += 4
	}
	for name, value := range p.Headers {
		size += 1 + len(name) + 1
		if text, ok := value.(string); ok {
			size += 4 + len(text)
		} else {
			size += 8
		}
	}
	return size
}

// check reports what AMQP cannot carry, or nil.
func check(exchange string, m *sinks.Message) error {
	if len(exchange) > shortString {
		return refused(reasonInvalid, fmt.Errorf("exchange %.40q…: the name has %d bytes, AMQP allows %d", exchange, len(exchange), shortString))
	}
	for _, field := range [...]struct{ name, value string }{
		{"routing key", m.Destination}, {"type", m.Type}, {"content type", m.ContentType},
	} {
		if len(field.value) > shortString {
			return refused(reasonTooLong, fmt.Errorf("message %s: its %s has %d bytes, AMQP allows %d", messageID(m.ID), field.name, len(field.value), shortString))
		}
	}
	for _, header := range m.Headers {
		switch {
		case header.Name == "CC" || header.Name == "BCC":
			// The broker would close the channel, and what is in flight on it be
			// sent twice.
			return refused(reasonInvalid, fmt.Errorf("message %s: RabbitMQ reads header %s as a list of routing keys and refuses text: give the row's header another name", messageID(m.ID), header.Name))
		case len(header.Name) > shortString:
			return refused(reasonTooLong, fmt.Errorf("message %s: the header name %.40q… has %d bytes, AMQP allows %d", messageID(m.ID), header.Name, len(header.Name), shortString))
		}
	}
	return nil
}

// checkFrame reports headers that do not fit into one frame, or nil.
func checkFrame(m *sinks.Message, p *amqp.Publishing, frameMax int) error {
	if size := headerFrame(p); frameMax > 0 && size > frameMax {
		return refused(reasonHeadersTooLarge, fmt.Errorf("message %s: its %d headers and properties take %d bytes, the broker's frame_max allows %d", messageID(m.ID), len(m.Headers), size, frameMax))
	}
	return nil
}

// refused is a message that can never be sent.
func refused(reason string, err error) error {
	return &sinks.Error{Scope: sinks.ScopeMessage, Permanent: true, Reason: reason, Err: err}
}

// messageID is the text form of a UUID.
func messageID(id [16]byte) string {
	return uuid.String(id)
}

// parseMessageID reads what messageID wrote.
func parseMessageID(text string) (id [16]byte, ok bool) {
	return uuid.Parse([]byte(text))
}
