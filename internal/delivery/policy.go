package delivery

import (
	"cmp"

	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

// Policy is what becomes of a message that was refused as often as is allowed,
// or that can never succeed.
type Policy string

// The values of failures.policy and on_failure.
const (
	// Park holds back its key until it gets through or an operator decides.
	Park Policy = "park"
	// DeadLetter moves it to the dead letters; its key goes on.
	DeadLetter Policy = "dead_letter"
	// Skip deletes it; its key goes on.
	Skip Policy = "skip"
)

// Failures say what becomes of refused messages.
type Failures struct {
	// Policy is for messages whose route has none.
	Policy Policy
	// MaxAttempts is how often a message is tried before the policy applies. Only
	// those count that the broker refused for what the message is.
	MaxAttempts int
	// Backoff is between attempts, and while a sink or a destination is away.
	Backoff Backoff
}

// refused decides about a message that was refused, for the n-th time in a row.
func (f *Failures) refused(target route.Target, n int, err error) source.Outcome {
	outcome := source.Outcome{
		Verdict: source.Retrying, Attempts: n, RetryIn: f.Backoff.pause(n),
		Reason: sinks.ReasonOf(err), Error: err.Error(),
	}
	if n < f.MaxAttempts && !sinks.IsPermanent(err) {
		return outcome
	}
	switch f.policy(target) {
	case DeadLetter:
		outcome.Verdict = source.Dead
	case Skip:
		outcome.Verdict = source.Dropped
	case Park:
		outcome.Verdict = source.Parked
	default:
		outcome.Verdict = source.Parked
	}
	return outcome
}

func (f *Failures) policy(target route.Target) Policy {
	if target.Route == nil {
		return f.Policy
	}
	return cmp.Or(Policy(target.Route.OnFailure()), f.Policy)
}
