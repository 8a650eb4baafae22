package delivery

import (
	"cmp"
	"time"

	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

// permanentPause is the longest pause before a message is tried again that cannot succeed as it is.
const permanentPause = time.Hour

// refused decides about a message that was refused, for the n-th time in a row.
func (f *Failures) refused(target route.Target, n int, err error) source.Outcome {
	backoff := f.Backoff
	if sinks.IsPermanent(err) {
		// Only a change by somebody lets it through, and there may be many: the tries thin out.
		backoff.Max = max(backoff.Max, permanentPause)
	}
	outcome := source.Outcome{
		Verdict: source.Retrying, Attempts: n, RetryIn: backoff.pause(n),
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
	return cmp.Or(target.Route.OnFailure(), f.Policy)
}
