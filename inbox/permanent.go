package inbox

import (
	"time"

	"github.com/outboxrelay/relay/inbox/internal/failure"
)

// MaxRetryAfter bounds the pause of RetryAfter, since what is behind the message
// waits too.
const MaxRetryAfter = 15 * time.Minute

// Permanent marks a handler's error as one that no further attempt can change,
// such as a payload that cannot be decoded. The consumers of packages kafka and
// rabbitmq put the message aside at once then, after this one attempt. They do
// try it again where the database was at fault: when the connection was lost, or
// err wraps what the server says of an outage, a lock timeout or a deadlock.
//
// The error has err's text and wraps it. Permanent(nil) is nil. Process and the
// like return it as any other.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &failure.PermanentError{Err: err}
}

// RetryAfter marks a handler's error as one that passes: the next attempt begins
// after delay instead of the consumer's Backoff, but MaxRetryAfter at the latest.
// It is an attempt like any other, so that the last one has the message put
// aside. A delay that is not positive leaves the pause to Backoff.
//
// The error has err's text and wraps it. RetryAfter(nil, delay) is nil. Process
// and the like return it as any other.
func RetryAfter(err error, delay time.Duration) error {
	if err == nil {
		return nil
	}
	return &failure.RetryAfterError{Err: err, Delay: min(delay, MaxRetryAfter)}
}
