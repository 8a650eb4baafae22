package kafka

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

// envelope writes a message's attributes and the user's headers as record
// headers.
type envelope struct {
	style  sinks.Style
	source string
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
func (e envelope) reserved(name string) bool {
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

// appendHeaders appends the number of headers and the headers as a record has
// them.
func (e envelope) appendHeaders(b []byte, m *sinks.Message) []byte {
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
		b = appendID(appendName(b, "ce_id"), m.ID)
		b = appendHeader(b, "ce_type", eventType(m))
		b = appendHeader(b, "ce_source", e.source)
		b = appendTime(appendName(b, "ce_time"), m.CreatedAt)
		if m.Key != nil {
			b = appendName(b, "ce_subject")
			b = binary.AppendVarint(b, int64(len(m.Key)))
			b = append(b, m.Key...)
		}
		b = appendHeader(b, "content-type", m.ContentType)
	case sinks.StyleDebezium:
		b = appendID(appendName(b, "id"), m.ID)
		b = appendHeader(b, "eventType", m.Type)
	default:
		b = appendID(appendName(b, "message-id"), m.ID)
		b = appendHeader(b, "message-type", m.Type)
		b = appendSequence(appendName(b, "message-sequence"), m.Sequence)
		b = appendTime(appendName(b, "message-time"), m.CreatedAt)
		b = appendHeader(b, "content-type", m.ContentType)
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
	return append(binary.AppendVarint(b, int64(len(name))), name...)
}

func appendHeader(b []byte, name, value string) []byte {
	b = appendName(b, name)
	b = binary.AppendVarint(b, int64(len(value)))
	return append(b, value...)
}

// appendID appends a UUID's canonical text as a header's value.
func appendID(b []byte, id [16]byte) []byte {
	b = binary.AppendVarint(b, 36)
	b = hex.AppendEncode(b, id[:4])
	b = append(b, '-')
	b = hex.AppendEncode(b, id[4:6])
	b = append(b, '-')
	b = hex.AppendEncode(b, id[6:8])
	b = append(b, '-')
	b = hex.AppendEncode(b, id[8:10])
	b = append(b, '-')
	return hex.AppendEncode(b, id[10:])
}

// canonical is a UUID's canonical text, for errors.
func canonical(id [16]byte) string { return string(appendID(nil, id)[1:]) }

func appendSequence(b []byte, sequence int64) []byte {
	return shortValue(b, strconv.AppendInt(append(b, 0), sequence, 10))
}

// appendTime appends a time in RFC 3339 with its fraction of a second, in UTC.
func appendTime(b []byte, t time.Time) []byte {
	return shortValue(b, t.UTC().AppendFormat(append(b, 0), time.RFC3339Nano))
}

// shortValue sets the length of a value of fewer than 64 bytes that was
// appended to b behind one byte left for it.
func shortValue(b, appended []byte) []byte {
	appended[len(b)] = byte(len(appended)-len(b)-1) << 1
	return appended
}
