package tracing

import (
	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/sinks"
)

// headerParent is the W3C's Trace Context, as the writers' libraries name it.
const headerParent = "traceparent"

// parentLength is the length of a traceparent of version 00:
// 00-<32 hex digits>-<16 hex digits>-<2 hex digits>. Later versions may be
// longer.
const parentLength = 55

// Stored returns the context that a message's writer stored with it, without
// its trace state, which no exporter exports of a link. It is not valid where there is none, or none that the Trace
// Context knows. It does not allocate, and shares no memory with the message.
func Stored(m *sinks.Message) trace.SpanContext {
	parent := header(m, headerParent)
	if len(parent) < parentLength || parent[2] != '-' || parent[35] != '-' || parent[52] != '-' {
		return trace.SpanContext{}
	}
	var version, flags [1]byte
	var config trace.SpanContextConfig
	if !decodeHex(version[:], parent[:2]) || !decodeHex(config.TraceID[:], parent[3:35]) ||
		!decodeHex(config.SpanID[:], parent[36:52]) || !decodeHex(flags[:], parent[53:55]) {
		return trace.SpanContext{}
	}
	const known = trace.FlagsSampled | trace.FlagsRandom
	longer := len(parent) > parentLength
	switch {
	case version[0] == 0xff,
		version[0] == 0 && (longer || trace.TraceFlags(flags[0]) > known),
		longer && parent[parentLength] != '-',
		!config.TraceID.IsValid() || !config.SpanID.IsValid():
		return trace.SpanContext{}
	}
	config.TraceFlags = trace.TraceFlags(flags[0]) & known
	config.Remote = true
	return trace.NewSpanContext(config)
}

func header(m *sinks.Message, name string) string {
	for i := range m.Headers {
		if m.Headers[i].Name == name {
			return m.Headers[i].Value
		}
	}
	return ""
}

// decodeHex decodes lower case digits, the only ones that the Trace Context
// allows, twice as many as there are bytes.
func decodeHex(to []byte, digits string) bool {
	for i := range to {
		high, ok := nibble(digits[2*i])
		low, too := nibble(digits[2*i+1])
		if !ok || !too {
			return false
		}
		to[i] = high<<4 | low
	}
	return true
}

func nibble(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
