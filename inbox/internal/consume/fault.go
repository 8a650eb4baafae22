package consume

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/internal/failure"
	"github.com/outboxrelay/relay/internal/sqlstate"
)

// Fault is whose it is that a transaction failed.
type Fault uint8

const (
	// Interrupted is nobody's: the work's context has ended.
	Interrupted Fault = iota
	// Database means that the message may succeed unchanged when the database is back.
	// It is no attempt.
	Database
	// Contention means that other transactions were in the way: a lock was not
	// free in time, or a deadlock or a serialization failure came again and
	// again. The message may succeed unchanged. It is no attempt.
	Contention
	// Message means that the handler did not get along with the message.
	Message
	// Permanent is Message, and the handler says that no further attempt can
	// succeed.
	Permanent
)

// judge says whose fault an error of try is, and tells the observer. It may ask
// the database whether it answers, and logs when an outage begins.
func (r *Runner) judge(work context.Context, err error) Fault {
	fault := r.faultOf(work, err)
	switch fault {
	case Database:
		r.gone(err, false)
	case Contention:
		r.counters.contentions.Add(1)
		r.contended.warn(r.config.Logger, "messages wait for other transactions of the database (locks, deadlocks, serialization failures): they are tried again, and no attempt is counted", err)
	case Interrupted, Message, Permanent:
	}
	if failed, ok := errors.AsType[*Error](err); ok {
		r.failed(failed.source, failed.reason(fault))
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
	case fault == Contention:
		return inbox.Contention
	case isError[*PanicError](e.err):
		return inbox.HandlerPanicked
	case e.stage.timeout:
		return inbox.TimedOut
	case e.stage.done:
		return inbox.CommitFailed
	}
	return inbox.HandlerFailed
}

func (r *Runner) faultOf(work context.Context, err error) Fault {
	var s stage
	if failed, ok := errors.AsType[*Error](err); ok {
		s = failed.stage
	}
	switch {
	case work.Err() != nil:
		return Interrupted
	case isError[*PanicError](err):
		return Message
	case isContention(err) && !s.lost:
		return Contention
	case !s.entered, s.lost, isOutage(err):
		// What comes before the handler is the same for every message: a
		// table that is missing must not make poison of all of them.
		return Database
	case isError[*failure.PermanentError](err):
		return Permanent
	case sqlstate.Of(err) != "", errors.Is(err, pgx.ErrTxCommitRollback):
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

// isContention recognises what the server says when other transactions were in
// the way. A statement_timeout (57014) is not among them: it does not say
// whether the statement waited or was slow, which it would be the next time too.
func isContention(err error) bool {
	switch sqlstate.Of(err) {
	case "55P03", // lock_not_available: lock_timeout, NOWAIT
		"40001", "40P01": // serialization_failure, deadlock_detected
		return true
	}
	return false
}

// isOutage recognises errors that say that the database cannot work for now,
// whatever it is asked.
func isOutage(err error) bool {
	if isError[*pgconn.ConnectError](err) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) {
		return true
	}
	state := sqlstate.Of(err)
	if len(state) != 5 {
		return false
	}
	switch state[:2] {
	case "08", // connection exception
		"53", // insufficient resources: connections, memory, disk
		"58": // system error: input and output
		return true
	}
	switch state {
	case "57P01", "57P02", "57P03", "57P05", // shut down, crashed, starting, idle session ended
		"25006": // read-only: a primary that became a standby
		return true
	}
	return false
}

func isError[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// retryAfter is the pause that the handler asked for before the next attempt, 0
// for none.
func retryAfter(err error) time.Duration {
	if asked, ok := errors.AsType[*failure.RetryAfterError](err); ok {
		return max(asked.Delay, 0)
	}
	return 0
}
