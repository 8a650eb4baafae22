// Package consume is what the consumers of packages kafka and rabbitmq have in
// common: it runs a handler through the inbox, judges what went wrong (the
// message's fault, which counts as an attempt, or the database's, which does
// not), tries again with pauses, keeps the order of each key meanwhile, splits
// batches to find who is to blame, and puts aside what cannot be processed. The
// consumers receive, acknowledge and publish dead letters.
package consume

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/internal/delivery"
)

// Runner processes messages. It may be used concurrently.
type Runner struct {
	config Config
	// box is the inbox without IDOf: messages were identified before.
	box *inbox.Inbox

	health   health
	attempts attempts
	counters counters
	breaker  *breaker
	pauses   pauses
	// failing is what is logged of the breaker, contended of contention.
	failing   Trouble
	contended occasional
}

// New makes a Runner.
func New(config Config) *Runner {
	box := *config.Inbox
	box.IDOf = nil
	r := &Runner{config: config, box: &box, pauses: pauses{sources: make(map[string]bool), news: make(chan struct{})}}
	r.breaker = newBreaker(config.BreakerThreshold, config.Backoff, func(open bool) {
		r.Observer().BreakerOpen(config.Inbox.Consumer, open)
	})
	return r
}

// BreakerOpen reports whether messages wait because several failed alike.
func (r *Runner) BreakerOpen() bool { return r.breaker.isOpen() }

// Observer is the inbox's, or one that does nothing.
func (r *Runner) Observer() inbox.ConsumerObserver { return ObserverOf(r.config.Inbox) }

// ObserverOf is the inbox's observer, as far as it observes consumers.
func ObserverOf(box *inbox.Inbox) inbox.ConsumerObserver {
	if observer, ok := box.Observer.(inbox.ConsumerObserver); ok {
		return observer
	}
	return inbox.Unobserved{}
}

// failed and retried tell the inbox's observer.
func (r *Runner) failed(source string, reason inbox.Reason) {
	if observer := r.config.Inbox.Observer; observer != nil {
		observer.Failed(r.config.Inbox.Consumer, source, reason)
	}
}

func (r *Runner) retried(source string) {
	if observer := r.config.Inbox.Observer; observer != nil {
		observer.Retried(r.config.Inbox.Consumer, source)
	}
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

// identify is Inbox.Identify, for an Inbox.IDOf that may panic. It is called
// once for each delivery.
func (r *Runner) identify(message inbox.Message) (id inbox.ID, err error) {
	defer func() {
		if value := recover(); value != nil {
			err = fmt.Errorf("%w: Inbox.IDOf panicked: %v", inbox.ErrNoID, value)
		}
	}()
	return r.config.Inbox.Identify(message)
}

// try processes messages in one transaction; a single one where there is no
// handler of batches. work is not the context of a stop: that lets what runs
// finish. attempt counts the tries of a message. Its errors are for judge.
func (r *Runner) try(work context.Context, attempt int, messages []inbox.Message) ([]inbox.Result, error) {
	ctx := delivery.With(work, delivery.Delivery{Group: r.config.Group, Attempt: attempt})
	if r.config.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, r.config.Timeout+databaseTime, errSlow)
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

// transact calls the inbox as the handler's kind needs it.
func (r *Runner) transact(ctx context.Context, messages []inbox.Message, s *stage) ([]inbox.Result, error) {
	c, first := &r.config, messages[0]
	lost := func(tx pgx.Tx) func() bool {
		return func() bool { return tx.Conn() != nil && tx.Conn().IsClosed() }
	}
	// database/sql does not show its connections: there the database is asked.
	unknown := func() bool { return false }
	var result inbox.Result
	var err error
	switch {
	case c.BatchHandler != nil:
		return r.box.ProcessBatch(ctx, c.DB, messages, func(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
			return r.run(ctx, s, lost(tx), fresh[0].ID, func(ctx context.Context) error { return c.BatchHandler(ctx, tx, fresh) })
		})
	case c.SQLBatchHandler != nil:
		return r.box.ProcessSQLBatch(ctx, c.SQL, messages, func(ctx context.Context, tx *sql.Tx, fresh []inbox.Message) error {
			return r.run(ctx, s, unknown, fresh[0].ID, func(ctx context.Context) error { return c.SQLBatchHandler(ctx, tx, fresh) })
		})
	case c.SQLHandler != nil:
		result, err = r.box.ProcessSQL(ctx, c.SQL, first, func(ctx context.Context, tx *sql.Tx, m inbox.Message) error {
			return r.run(ctx, s, unknown, m.ID, func(ctx context.Context) error { return c.SQLHandler(ctx, tx, m) })
		})
	default:
		result, err = r.box.Process(ctx, c.DB, first, func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
			return r.run(ctx, s, lost(tx), m.ID, func(ctx context.Context) error { return c.Handler(ctx, tx, m) })
		})
	}
	return []inbox.Result{result}, err
}

// run calls the handler; again when the transaction is repeated.
func (r *Runner) run(ctx context.Context, s *stage, lost func() bool, id inbox.ID, handle func(context.Context) error) error {
	if timeout := r.config.Timeout; timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, errTimeout)
		defer cancel()
		reminder := time.AfterFunc(timeout+overdue, func() {
			r.config.Logger.Warn("a handler goes on although its context has ended; nothing behind it is processed", "message_id", id, "timeout", timeout)
		})
		defer reminder.Stop()
	}
	*s = stage{entered: true}
	err := guard(ctx, handle)
	s.done = err == nil
	s.timeout = err != nil && errors.Is(context.Cause(ctx), errTimeout)
	s.lost = err != nil && ctx.Err() == nil && lost()
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
