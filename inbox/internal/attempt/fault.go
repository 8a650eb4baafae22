package attempt

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/internal/failure"
)

// Fault is whose it is that a transaction failed.
type Fault uint8

const (
	// Interrupted is nobody's: the work's context has ended.
	Interrupted Fault = iota
	// Database means that the message may succeed unchanged when the database is back.
	// It is no attempt.
	Database
	// Message means that the handler did not get along with the message.
	Message
	// Permanent is Message, and the handler says that no further attempt can
	// succeed.
	Permanent
	// Hopeless means that the message has no id, so that it cannot be tried.
	Hopeless
)

// Judge says whose fault an error of Try is, and tells the observer. It may ask
// the database whether it answers, and logs when an outage begins.
func (r *Runner) Judge(work context.Context, err error) Fault {
	fault := r.judge(work, err)
	if fault == Database {
		r.gone(err, false)
	}
	if failed, ok := errors.AsType[*Error](err); ok {
		r.Observer().Failed(r.Inbox.Consumer, failed.source, failed.reason(fault))
	}
	return fault
}

// reason is why the transaction failed.
func (e *Error) reason(fault Fault) inbox.Reason {
	switch {
	case fault == Interrupted:
		return inbox.Interrupted
	case fault == Database:
		return inbox.DatabaseFailed
	case fault == Hopeless:
		return inbox.WithoutID
	case isError[*PanicError](e.err):
		return inbox.HandlerPanicked
	case e.stage.timeout:
		return inbox.TimedOut
	case e.stage.done:
		return inbox.CommitFailed
	}
	return inbox.HandlerFailed
}

func (r *Runner) judge(work context.Context, err error) Fault {
	var s stage
	if failed, ok := errors.AsType[*Error](err); ok {
		s = failed.stage
	}
	switch {
	case work.Err() != nil:
		return Interrupted
	case errors.Is(err, inbox.ErrNoID) && !s.entered:
		return Hopeless
	case isError[*PanicError](err):
		return Message
	case !s.entered, s.lost, isOutage(err):
		// What comes before the handler is the same for every message: a
		// table that is missing must not make poison of all of them.
		return Database
	case isError[*failure.Permanent](err):
		return Permanent
	case isError[*pgconn.PgError](err), errors.Is(err, pgx.ErrTxCommitRollback):
		return Message // the database answered
	case s.done:
		return Database // it did not, to the commit
	case r.Ping(work) != nil:
		// The handler's own error says nothing; perhaps it waited for a
		// database that no longer answers.
		if work.Err() != nil {
			return Interrupted
		}
		return Database
	}
	return Message
}

// isOutage recognises errors that say that the database cannot work for now,
// whatever it is asked, and those that the same transaction may not meet again.
func isOutage(err error) bool {
	if isError[*pgconn.ConnectError](err) {
		return true
	}
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || len(e.Code) != 5 {
		return false
	}
	switch e.Code[:2] {
	case "08", // connection exception
		"53", // insufficient resources: connections, memory, disk
		"58": // system error: input and output
		return true
	}
	switch e.Code {
	case "57P01", "57P02", "57P03", "57P05", // shut down, crashed, starting, idle session ended
		"25006",          // read-only: a primary that became a standby
		"40001", "40P01": // serialization failure, deadlock
		return true
	}
	return false
}

func isError[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// RetryAfter is the pause that the handler asked for before the next attempt, 0
// for none.
func RetryAfter(err error) time.Duration {
	if asked, ok := errors.AsType[*failure.RetryAfter](err); ok {
		return max(asked.Delay, 0)
	}
	return 0
}
