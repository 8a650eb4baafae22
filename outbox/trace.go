package outbox

import (
	"context"
	"maps"

	"go.opentelemetry.io/otel/propagation"
)

const (
	traceparent = "traceparent"
	tracestate  = "tracestate"
)

// traceHeaders are what the propagator made of a context.
type traceHeaders map[string]string

func (w *Writer) traceHeaders(ctx context.Context) traceHeaders {
	propagator := w.Propagator
	if propagator == nil {
		propagator = propagation.TraceContext{}
	}
	carrier := propagation.MapCarrier{}
	propagator.Inject(ctx, carrier)
	return traceHeaders(carrier)
}

// merge returns the message's own headers and those of the trace that the
// message does not have. A tracestate goes only with the traceparent that it
// belongs to. The message's map is not changed.
func (t traceHeaders) merge(own map[string]string) map[string]string {
	if len(t) == 0 {
		return own
	}
	if len(own) == 0 {
		return t
	}
	merged := maps.Clone(own)
	_, ownTrace := own[traceparent]
	for name, value := range t {
		if _, has := own[name]; has || ownTrace && name == tracestate {
			continue
		}
		merged[name] = value
	}
	return merged
}
