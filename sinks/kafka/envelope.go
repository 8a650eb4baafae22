package kafka

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"time"

	"github.com/outboxrelay/relay/internal/uuid"
	"github.com/outboxrelay/relay/sinks"
)

// envelope writes a message's attributes and the user's headers as record
// headers.
type envelope struct {
	style  sinks.Style
	source string
	clock  clock
}

func newEnvelope(e sinks.Envelope) (envelope, error) {
	switch e.Style {
	case "":
		e.Style = sinks.StylePlain
	case sinks.StylePlain, sinks.StyleDebezium:
	case sinks.StyleCloudEvents:
		if e.Source == "" {
			return envelope{}, fmt.Errorf("source: is empty, but headers: %s needs it", e.Style)
		}
	default:
		return envelope{}, fmt.Errorf("headers: %q is not a style: use plain, cloudevents or debezium", e.Style)
	}
	return envelope{style: e.Style, source: e.Source}, nil
}

// headerReplayed is written for replayed messages in every style. It is the
// relay's even on a message that is not replayed: an application that passes on
// the headers of a message that it received must not claim a replay.
const headerReplayed = "message-replayed"

// reserved reports whether the style writes a header of this name itself; the
// user's is left out then, so that consumers find each attribute once.
func (e *envelope) reserved(name string) bool {
	if name == headerReplayed {
		return true
	}
	switch e.style {
	case sinks.StyleCloudEvents:
		switch name {
		case "ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "ce_subject", "content-type":
			return true
		}
	case sinks.StyleDebezium:
		return name == "id" || name == "eventType"
	default:
		switch name {
		case "message-id", "message-type", "message-sequence", "message-time", "content-type":
			return true
		}
	}
	return false
}

// Names of headers as a record has them: behind their length, and before the length
// of a value that is always the same.
const (
	wireID       = "\x14message-id" + wireUUID
	wireType     = "\x18message-type"
	wireSequence = "\x20message-sequence"
	wireTime     = "\x18message-time"
	wireContent  = "\x18content-type"
	// wireUUID is the length of a UUID's text.
	wireUUID = "\x48"
)

// appendHeaders appends the number of headers and the headers as a record has
// them.
func (e *envelope) appendHeaders(b []byte, m *sinks.Message) []byte {
	count := 5
	switch e.style {
	case sinks.StyleCloudEvents:
		count = 6
		if m.Key != nil {
			count++
		}
	case sinks.StyleDebezium:
		count = 2
	}
	timed := e.style != sinks.StyleDebezium && m.Dated()
	if e.style != sinks.StyleDebezium && !timed {
		count--
	}
	if m.Replayed {
		count++
	}
	user := len(m.Headers)
	for i := range m.Headers {
		if e.reserved(m.Headers[i].Name) {
			user--
		}
	}
	b = binary.AppendVarint(b, int64(count+user))

	switch e.style {
	case sinks.StyleCloudEvents:
		b = appendHeader(b, "ce_specversion", "1.0")
		b = uuid.Append(append(appendName(b, "ce_id"), wireUUID...), m.ID)
		b = appendHeader(b, "ce_type", eventType(m))
		b = appendHeader(b, "ce_source", e.source)
		if timed {
			b = e.clock.append(appendName(b, "ce_time"), m.CreatedAt)
		}
		if m.Key != nil {
			b = appendName(b, "ce_subject")
			b = binary.AppendVarint(b, int64(len(m.Key)))
			b = append(b, m.Key...)
		}
		b = appendHeader(b, "content-type", m.ContentType)
	case sinks.StyleDebezium:
		b = uuid.Append(append(appendName(b, "id"), wireUUID...), m.ID)
		b = appendHeader(b, "eventType", m.Type)
	default:
		b = uuid.Append(append(b, wireID...), m.ID)
		b = appendText(append(b, wireType...), m.Type)
		b = appendSequence(append(b, wireSequence...), m.Sequence)
		if timed {
			b = e.clock.append(append(b, wireTime...), m.CreatedAt)
		}
		b = appendText(append(b, wireContent...), m.ContentType)
	}
	if m.Replayed {
		b = appendHeader(b, headerReplayed, "true")
	}
	if user > 0 {
		for i := range m.Headers {
			if !e.reserved(m.Headers[i].Name) {
				b = appendHeader(b, m.Headers[i].Name, m.Headers[i].Value)
			}
		}
	}
	return b
}

// eventType returns the type for ce_type, which CloudEvents demands to be there
// and not empty: a row without a type has its topic's name.
func eventType(m *sinks.Message) string {
	if m.Type == "" {
		return m.Topic
	}
	return m.Type
}

func appendName(b []byte, name string) []byte {
	return appendText(b, name)
}

func appendHeader(b []byte, name, value string) []byte { return appendText(appendName(b, name), value) }

func appendText(b []byte, value string) []byte {
	if len(value) < 64 {
		return append(append(b, byte(len(value))<<1), value...)
	}
	return append(binary.AppendVarint(b, int64(len(value))), value...)
}

func appendSequence(b []byte, sequence int64) []byte {
	return shortValue(b, strconv.AppendInt(append(b, 0), sequence, 10))
}

// clock writes times. It keeps the latest one's text up to the second, which rows
// that were written together share.
type clock struct {
	second int64
	text   []byte
}

// append appends a time in RFC 3339 with its fraction of a second, in UTC.
func (c *clock) append(b []byte, t time.Time) []byte {
	if second := t.Unix(); second != c.second || c.text == nil {
		c.second = second
		c.text = t.UTC().AppendFormat(c.text[:0], "2006-01-02T15:04:05")
	}
	out := append(append(b, 0), c.text...)
	if n := t.Nanosecond(); n > 0 {
		fraction := [10]byte{'.'}
		for i := 9; i > 0; i-- {
			fraction[i] = byte('0' + n%10)
			n /= 10
		}
		end := 10
		for fraction[end-1] == '0' {
			end--
		}
		out = append(out, fraction[:end]...)
	}
	return shortValue(b, append(out, 'Z'))
}

// shortValue sets the length of a value of fewer than 64 bytes that was
// appended to b behind one byte left for it.
func shortValue(b, appended []byte) []byte {
	appended[len(b)] = byte(len(appended)-len(b)-1) << 1
	return appended
}
