// Package causation hands from an inbox to an outbox which message a handler
// answers, by the handler's context.
package causation

import "context"

// Names of the headers, as docs/wire.md has them.
const (
	// CorrelationID names what a message belongs to: all messages that one led
	// to, over any number of services, have the same.
	CorrelationID = "correlation-id"
	// CausationID is the id of the message that a message answers.
	CausationID = "causation-id"
)

type key struct{}

type ids struct{ correlation, causation string }

// With returns ctx for the handler of a message: causation is the message's id,
// and correlation what it belongs to.
func With(ctx context.Context, correlation, causation string) context.Context {
	return context.WithValue(ctx, key{}, ids{correlation, causation})
}

// From returns what With was given; ok is false where no message is handled.
func From(ctx context.Context) (correlation, causation string, ok bool) {
	of, ok := ctx.Value(key{}).(ids)
	return of.correlation, of.causation, ok
}
