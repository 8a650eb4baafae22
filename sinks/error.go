package sinks

import "errors"

// Scope says what a failure concerns, and with it who else has to wait.
type Scope uint8

const (
	// ScopeSink means that the broker is away or refuses everybody (connection
	// refused, timeout, no leader, authentication, memory alarm). An error that nobody
	// classified has this scope: it is retried, nothing is lost.
	ScopeSink Scope = iota
	// ScopeDestination means that one topic, exchange or queue is missing, full or
	// forbidden. Other destinations go on.
	ScopeDestination
	// ScopePartition means that the part of the destination where this message
	// goes takes nothing for now (a Kafka partition without a leader or with too
	// few replicas), while other parts do. It says nothing about the message and
	// is no attempt: its key waits, in memory and with growing pauses; other keys
	// go on, and so do the sink and the destination. Use it only where the failure
	// is known to be that narrow: a broker that is away is ScopeSink.
	ScopePartition
	// ScopeMessage means that the broker refused this one message (too large, invalid,
	// unroutable). Its key waits; other keys go on.
	ScopeMessage
	// ScopeSkipped means that this message was not tried, because an earlier one of its
	// key failed.
	ScopeSkipped
)

// String returns the scope as logs and metrics show it.
func (s Scope) String() string {
	switch s {
	case ScopeSink:
		return "sink"
	case ScopeDestination:
		return "destination"
	case ScopePartition:
		return "partition"
	case ScopeMessage:
		return "message"
	case ScopeSkipped:
		return "skipped"
	}
	return "unknown"
}

// Error is a failure that a sink classified.
type Error struct {
	Scope Scope
	// Permanent: sending the same message again can never succeed.
	Permanent bool
	// Reason is a short, fixed word for metrics: message_too_large,
	// unknown_topic, connection, timeout, nack, unroutable …
	Reason string
	// Err names the object, its value and, where there is one, the remedy. It
	// never holds a secret or a payload.
	Err error
}

// Error implements error.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ErrSkipped is the result of a message that was not tried because an earlier
// one of its destination and key failed.
var ErrSkipped error = &Error{Scope: ScopeSkipped, Reason: "skipped", Err: errors.New("not tried: an earlier message of its key failed")}

// ScopeOf returns what err concerns: ScopeSink for an error without an Error
// in its chain.
func ScopeOf(err error) Scope {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Scope
	}
	return ScopeSink
}

// IsPermanent reports whether sending the same message again can never
// succeed. Unclassified errors are not permanent.
func IsPermanent(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Permanent
}

// ReasonOther is the reason of an error that nobody classified.
const ReasonOther = "other"

// ReasonOf returns the short word of err for metrics, ReasonOther when it has
// none.
func ReasonOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok && e.Reason != "" {
		return e.Reason
	}
	return ReasonOther
}
