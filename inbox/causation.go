package inbox

import (
	"context"

	"github.com/outboxrelay/relay/internal/causation"
)

// maxCorrelation bounds a correlation id that is handed on. What is longer is
// no id, and could be more than a broker takes in the next message's headers.
const maxCorrelation = 1024

// withCause returns ctx as the one in which the message is answered: what
// outbox.Insert writes in it belongs to what the message belongs to.
func withCause(ctx context.Context, message Message) context.Context {
	if message.ID.IsZero() {
		return ctx
	}
	id := message.ID.String()
	correlation := storable(message.Headers[causation.CorrelationID])
	if correlation == "" || len(correlation) > maxCorrelation {
		correlation = id
	}
	return causation.With(ctx, correlation, id)
}
