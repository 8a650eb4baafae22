package inbox

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/outboxrelay/relay/internal/uuid"
)

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
	// "correlation_id", the properties, unless there is a header of that name.
	// A value that is not a UUID becomes one: IDFrom the Namespace and the value.
	// It depends on nothing else, so that a message that was dead-lettered and
	// moved back, or shovelled, has the id that it had. A message without this
	// header is identified as one of the relay's.
	IDHeader string
	// Namespace is a UUID of your own that stands for who gave those ids, and
	// ForeignIDs where it is zero. Producers that number their messages each for
	// itself need one each, and a Decoder each: in one namespace the second
	// one's message 1 is a duplicate of the first one's, and is not processed.
	Namespace ID
	// IDPerTopic makes the topic or routing key a part of such an id, for
	// producers whose values are unique within a topic only. A message that comes
	// by another topic or routing key is another one then: move it back to where
	// it was first.
	IDPerTopic bool
	// Transition claims for each such message the id of IDPerTopic as well, and
	// takes it for a duplicate when either was seen. It is for changing from
	// IDPerTopic, or from a version in which all were like that: set it for as long
	// as Inbox.Retention, so that no message that was processed before is processed
	// again. It writes two rows per message.
	Transition bool
}

// ForeignIDs is the namespace of ids that are not UUIDs, unless a Decoder has
// one of its own.
var ForeignIDs = ID{0x9c, 0x0d, 0x6b, 0x5a, 0x4f, 0x6e, 0x4b, 0x0b, 0x8e, 0x31, 0x7a, 0xd2, 0x5c, 0x64, 0xe1, 0x2f}

// Names of headers and prefixes, as docs/wire.md has them.
const (
	headerID       = "message-id"
	headerType     = "message-type"
	headerSequence = "message-sequence"
	headerTime     = "message-time"
	headerContent  = "content-type"
	headerKey      = "message-key"
	headerReplayed = "message-replayed"

	debeziumID   = "id"
	debeziumType = "eventType"
)

// cloudEvents are the prefixes of CloudEvents' attributes: Kafka's, AMQP's, and
// AMQP's as older versions of the specification had it.
var cloudEvents = [...]string{"ce_", "cloudEvents_", "cloudEvents:"}

// Kafka fills in ID, Type, ContentType, Sequence, Time, Replayed and Headers
// from a record's headers; Key too where it is nil and a CloudEvent has a
// subject. Set Topic before, since Decoder.IDPerTopic needs it. Where a name is
// there twice the last one counts, and a value that is not UTF-8 is made so.
//
// It never fails: what cannot be read is left as it is. A message without an
// id is refused by Process, with an error that says what was found instead.
func (d Decoder) Kafka(message *Message, headers []Header) {
	texts := make(map[string]string, len(headers))
	for _, h := range headers {
		texts[strings.ToValidUTF8(h.Name, "\uFFFD")] = strings.ToValidUTF8(string(h.Value), "\uFFFD")
	}
	d.decode(message, Properties{}, texts)
}

// RabbitMQ fills in the same from a message's properties and headers, which
// are of AMQP's types: text is as it is, numbers are decimal, times RFC 3339,
// tables and arrays as fmt prints them. A style's header goes before a
// property, and Key is the header message-key.
func (d Decoder) RabbitMQ(message *Message, properties Properties, headers map[string]any) {
	texts := make(map[string]string, len(headers))
	for name, value := range headers {
		texts[name] = amqpText(value)
	}
	if key, ok := texts[headerKey]; ok {
		message.Key = []byte(key)
	}
	d.decode(message, properties, texts)
}

func amqpText(value any) string {
	switch value := value.(type) {
	case nil:
		return ""
	case string:
		return strings.ToValidUTF8(value, "\uFFFD")
	case []byte:
		return strings.ToValidUTF8(string(value), "\uFFFD")
	case time.Time:
		return value.UTC().Format(time.RFC3339Nano)
	}
	return fmt.Sprint(value)
}

func (d Decoder) decode(message *Message, properties Properties, headers map[string]string) {
	message.Headers = headers
	ce := func(string) (string, bool) { return "", false }
	for _, prefix := range cloudEvents {
		if _, ok := headers[prefix+"specversion"]; ok {
			ce = func(attribute string) (string, bool) {
				value, ok := headers[prefix+attribute]
				return value, ok
			}
			break
		}
	}

	d.identify(message, properties, ce)
	eventType, _ := ce("type")
	dataType, _ := ce("datacontenttype")
	message.Type = cmp.Or(headers[headerType], eventType, headers[debeziumType], properties.Type)
	message.ContentType = cmp.Or(headers[headerContent], dataType, properties.ContentType)
	message.Replayed = headers[headerReplayed] == "true"
	message.Sequence = 0
	if sequence, err := strconv.ParseInt(headers[headerSequence], 10, 64); err == nil && sequence > 0 {
		message.Sequence = sequence
	}
	message.Time = properties.Timestamp
	eventTime, _ := ce("time")
	if at, err := time.Parse(time.RFC3339Nano, cmp.Or(headers[headerTime], eventTime)); err == nil {
		message.Time = at
	}
	if subject, ok := ce("subject"); ok && message.Key == nil {
		message.Key = []byte(subject)
	}
}

// identify sets the message's ID, or notes why it has none.
func (d Decoder) identify(message *Message, properties Properties, ce func(string) (string, bool)) {
	message.ID, message.former, message.badID = ID{}, ID{}, nil
	if value, ok := d.foreign(message.Headers, properties); ok {
		message.ID = d.identity(value)
		if perTopic := d.perTopic(message.Topic, value); d.IDPerTopic {
			message.ID = perTopic
		} else if d.Transition && perTopic != message.ID {
			message.former = perTopic
		}
		return
	}
	event, _ := ce("id")
	for _, candidate := range [...]struct {
		name, value string
	}{
		{"header " + headerID, message.Headers[headerID]},
		{"CloudEvents' id", event},
		{"property message_id", properties.MessageID},
		{"header " + debeziumID, message.Headers[debeziumID]},
	} {
		if candidate.value == "" {
			continue
		}
		id, err := ParseID(candidate.value)
		if err == nil {
			message.ID, message.badID = id, nil
			return
		}
		if message.badID == nil {
			message.badID = fmt.Errorf("%s is %s, not a UUID", candidate.name, quote(candidate.value))
		}
	}
}

// identity is what a foreign producer's value identifies. A serializer of JSON
// puts a value in quotes.
func (d Decoder) identity(value string) ID {
	if id, err := ParseID(value); err == nil {
		return id
	}
	var unquoted string
	if strings.HasPrefix(value, `"`) && json.Unmarshal([]byte(value), &unquoted) == nil && unquoted != "" {
		value = unquoted
	}
	return IDFrom(d.namespace(), value)
}

// perTopic is the same with the topic in it. It is as it always was, also where
// ParseID has learnt to read more: another identity would be another message.
func (d Decoder) perTopic(topic, value string) ID {
	if id, ok := uuid.Parse([]byte(value)); ok {
		return id
	}
	return IDFrom(d.namespace(), topic+"\n"+value)
}

func (d Decoder) namespace() ID {
	if d.Namespace.IsZero() {
		return ForeignIDs
	}
	return d.Namespace
}

// foreign is the value of IDHeader.
func (d Decoder) foreign(headers map[string]string, properties Properties) (string, bool) {
	if d.IDHeader == "" {
		return "", false
	}
	value := headers[d.IDHeader]
	if value == "" {
		switch d.IDHeader {
		case "message_id":
			value = properties.MessageID
		case "correlation_id":
			value = properties.CorrelationID
		}
	}
	return value, value != ""
}
