package outbox

import (
	"context"
	"maps"

	"go.opentelemetry.io/otel/propagation"

	"github.com/outboxrelay/relay/internal/causation"
)

const (
	traceparent = "traceparent"
	tracestate  = "tracestate"
)

// contextHeaders are what a context says of the messages that are written in
// it: their trace, and in a handler of an inbox the message that they answer.
type contextHeaders map[string]string

func (w *Writer) contextHeaders(ctx context.Context) contextHeaders {
	propagator := w.Propagator
	if propagator == nil {
		propagator = propagation.TraceContext{}
	}
	carrier := propagation.MapCarrier{}
	propagator.Inject(ctx, carrier)
	if correlation, cause, ok := causation.From(ctx); ok {
		carrier[causation.CorrelationID] = correlation
		carrier[causation.CausationID] = cause
	}
	return contextHeaders(carrier)
}

// merge returns the message's own headers and those of the context that the
// message does not have. A tracestate goes only with the traceparent that it
// belongs to. The message's map is not changed.
func (c contextHeaders) merge(own map[string]string) map[string]string {
	if len(c) == 0 {
		return own
	}
	if len(own) == 0 {
		return c
	}
	merged := maps.Clone(own)
	_, ownTrace := own[traceparent]
	for name, value := range c {
		if _, has := own[name]; has || ownTrace && name == tracestate {
			continue
		}
		merged[name] = value
	}
	return merged
}
