package tracing

import (
	"context"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/sinks"
)

const (
	someTrace = "0af7651916cd43dd8448eb211c80319c"
	someSpan  = "b7ad6b7169203331"
)

func with(headers ...string) *sinks.Message {
	m := &sinks.Message{}
	for i := 0; i < len(headers); i += 2 {
		m.Headers = append(m.Headers, sinks.Header{Name: headers[i], Value: headers[i+1]})
	}
	return m
}

// TestStored compares with OpenTelemetry's own propagator, which consumers use.
func TestStored(t *testing.T) {
	parents := []string{
		"", "-", "00", "nonsense", strings.Repeat("0", 55), strings.Repeat("-", 55),
		"00-" + someTrace + "-" + someSpan + "-01",
		"00-" + someTrace + "-" + someSpan + "-00",
		"00-" + someTrace + "-" + someSpan + "-ff",
		"00-" + someTrace + "-" + someSpan + "-03",
		"00-" + someTrace + "-" + someSpan + "-0g",
		"00-" + someTrace + "-" + someSpan + "-01-later",
		"01-" + someTrace + "-" + someSpan + "-01-later",
		"01-" + someTrace + "-" + someSpan + "-01later",
		"cc-" + someTrace + "-" + someSpan + "-01",
		"ff-" + someTrace + "-" + someSpan + "-01",
		"00-" + strings.ToUpper(someTrace) + "-" + someSpan + "-01",
		"00-" + strings.Repeat("0", 32) + "-" + someSpan + "-01",
		"00-" + someTrace + "-" + strings.Repeat("0", 16) + "-01",
		"00_" + someTrace + "_" + someSpan + "_01",
		"00-" + someTrace + "-" + someSpan + "-0\x00",
	}
	for _, parent := range parents {
		want := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{headerParent: parent}))
		if got := Stored(with("other", "x", headerParent, parent, "tracestate", "vendor=1")); !got.Equal(want) {
			t.Errorf("%q: got %+v, want %+v", parent, got, want)
		}
	}
	if Stored(with("a", "b")).IsValid() {
		t.Error("a message without a traceparent has a context")
	}
	m := with(headerParent, parents[6])
	if n := testing.AllocsPerRun(100, func() { Stored(m) }); n != 0 {
		t.Errorf("finding a stored context allocates %v times", n)
	}
}

// FuzzStored takes what the propagator takes, and nothing else.
func FuzzStored(f *testing.F) {
	f.Add("00-" + someTrace + "-" + someSpan + "-01")
	f.Add("01-" + someTrace + "-" + someSpan + "-01-x")
	f.Fuzz(func(t *testing.T, parent string) {
		want := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{headerParent: parent}))
		got := Stored(with(headerParent, parent))
		if !got.Equal(want) {
			t.Errorf("%q: got %+v, want %+v", parent, got, want)
		}
	})
}
