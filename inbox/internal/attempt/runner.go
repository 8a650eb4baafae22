// Package attempt runs a consumer's handler through the inbox and judges what
// went wrong: whether it was the message's fault, which counts, or the
// database's, which does not.
package attempt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/internal/delivery"
)

// Runner tries messages. It may be used concurrently.
type Runner struct {
	Inbox *inbox.Inbox
	DB    inbox.Beginner
	// One of Handler and BatchHandler.
	Handler      inbox.Handler
	BatchHandler inbox.BatchHandler
	// Timeout ends the handler's context; none where it is not positive. What
	// comes before and after the handler, such as the wait for a connection of
	// the pool or for another transaction with the same message, has
	// databaseTime beside it: a slow database takes nothing of the handler's
	// time, so that it never makes a message fail.
	Timeout time.Duration
	// Group is the Kafka consumer group; empty elsewhere.
	Group  string
	Logger *slog.Logger

	health health
}

// Observer is the inbox's, or one that does nothing.
func (r *Runner) Observer() inbox.Observer {
	if r.Inbox.Observer == nil {
		return inbox.Unobserved{}
	}
	return r.Inbox.Observer
}

// databaseTime is how long the database may take, beside the handler.
const databaseTime = 30 * time.Second

// overdue is how long after the end of its context a handler may go on before
// that is logged.
const overdue = 10 * time.Second

// Why contexts end.
var (
	errTimeout = errors.New("HandlerTimeout is over")
	errSlow    = fmt.Errorf("the database took longer than %s beside the handler", databaseTime)
)

// PanicError is a handler's panic.
type PanicError = delivery.PanicError

// Error is a failed transaction.
type Error struct {
	err   error
	stage stage
	// source is where its messages are from.
	source string
}

// stage is how far a transaction came.
type stage struct {
	// entered says that the handler was called, done that it returned nil.
	entered, done bool
	// timeout says that the handler's time was over when it returned an error.
	timeout bool
	// lost says that the connection was when the handler returned, and not
	// because its context had ended.
	lost bool
}

// Error implements error.
func (e *Error) Error() string {
	if e.stage.timeout {
		return fmt.Sprintf("%v: %v", errTimeout, e.err)
	}
	return e.err.Error()
}

// Unwrap returns what the inbox or the handler returned.
func (e *Error) Unwrap() error { return e.err }

// Identify is Inbox.Identify, for an Inbox.IDOf that may panic.
func (r *Runner) Identify(message inbox.Message) (id inbox.ID, err error) {
	defer func() {
		if value := recover(); value != nil {
			err = fmt.Errorf("%w: Inbox.IDOf panicked: %v", inbox.ErrNoID, value)
		}
	}()
	return r.Inbox.Identify(message)
}

// Try processes messages in one transaction; a single one where there is no
// BatchHandler. work is not the context of a stop: that lets what runs finish.
// attempt counts the tries of a message. Its errors are for Judge.
func (r *Runner) Try(work context.Context, attempt int, messages ...inbox.Message) ([]inbox.Result, error) {
	ctx := delivery.With(work, delivery.Delivery{Group: r.Group, Attempt: attempt})
	if r.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, r.Timeout+databaseTime, errSlow)
		defer cancel()
	}
	var s stage
	began := time.Now()
	results, err := r.transact(ctx, messages, &s)
	if err != nil {
		if errors.Is(context.Cause(ctx), errSlow) {
			err = errors.Join(errSlow, err)
		}
		return nil, &Error{err: err, stage: s, source: inbox.SourceOf(messages[0])}
	}
	r.back(began)
	return results, nil
}

func (r *Runner) transact(ctx context.Context, messages []inbox.Message, s *stage) ([]inbox.Result, error) {
	for _, m := range messages {
		// The inbox will do so again, but outside of a guard.
		if _, err := r.Identify(m); err != nil {
			return nil, err
		}
	}
	if r.BatchHandler != nil {
		return r.Inbox.ProcessBatch(ctx, r.DB, messages, func(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
			return r.run(ctx, s, tx, fresh[0].ID, func(ctx context.Context) error { return r.BatchHandler(ctx, tx, fresh) })
		})
	}
	result, err := r.Inbox.Process(ctx, r.DB, messages[0], func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		return r.run(ctx, s, tx, m.ID, func(ctx context.Context) error { return r.Handler(ctx, tx, m) })
	})
	return []inbox.Result{result}, err
}

// run calls the handler; again when the transaction is repeated.
func (r *Runner) run(ctx context.Context, s *stage, tx pgx.Tx, id inbox.ID, handle func(context.Context) error) error {
	if r.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, r.Timeout, errTimeout)
		defer cancel()
		reminder := time.AfterFunc(r.Timeout+overdue, func() {
			r.Logger.Warn("a handler goes on although its context has ended; nothing behind it is processed", "message_id", id, "timeout", r.Timeout)
		})
		defer reminder.Stop()
	}
	*s = stage{entered: true}
	err := guard(ctx, handle)
	s.done = err == nil
	s.timeout = err != nil && errors.Is(context.Cause(ctx), errTimeout)
	s.lost = err != nil && ctx.Err() == nil && tx.Conn() != nil && tx.Conn().IsClosed()
	return err
}

// guard turns a panic into an error, so that the transaction is rolled back as
// for any other.
func guard(ctx context.Context, handle func(context.Context) error) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = &PanicError{Value: value, Stack: debug.Stack()}
		}
	}()
	return handle(ctx)
}
