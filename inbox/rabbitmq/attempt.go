package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/outboxrelay/relay/inbox"
)

// PanicError is a handler's panic. Its transaction was rolled back.
type PanicError struct {
	Value any
	// Stack is where it happened, as debug.Stack shows it.
	Stack []byte
}

// Error implements error.
func (e *PanicError) Error() string { return fmt.Sprintf("the handler panicked: %v", e.Value) }

// Unwrap returns the value that the handler panicked with, if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// errTimeout is why a handler's context ends.
var errTimeout = errors.New("HandlerTimeout is over")

// overdue is how long after the end of its context a handler may go on before
// that is logged.
const overdue = 10 * time.Second

// attemptError is a failed transaction.
type attemptError struct {
	err error
	stage
	// timeout says that HandlerTimeout was over.
	timeout bool
}

// stage is how far a transaction came.
type stage struct {
	// entered says that the handler was called, done that it returned nil.
	entered, done bool
	// lost says that the connection was when the handler returned, and not
	// because its context had ended.
	lost bool
}

func (e *attemptError) Error() string {
	if e.timeout {
		return fmt.Sprintf("%v: %v", errTimeout, e.err)
	}
	return e.err.Error()
}

func (e *attemptError) Unwrap() error { return e.err }

// try processes messages in one transaction. Its error is an attemptError.
func (c *Consumer) try(work context.Context, messages []inbox.Message) ([]inbox.Result, error) {
	ctx := work
	if limit := c.config.HandlerTimeout; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(work, limit, errTimeout)
		defer cancel()
		reminder := time.AfterFunc(limit+overdue, func() {
			c.logger.Warn("a handler goes on although its context has ended: its place is taken as long as it does",
				"message_id", messages[0].ID, "timeout", limit)
		})
		defer reminder.Stop()
	}
	var s stage
	began := time.Now()
	results, err := c.transact(ctx, messages, &s)
	if err != nil {
		return nil, &attemptError{err: err, stage: s, timeout: errors.Is(context.Cause(ctx), errTimeout)}
	}
	c.databaseBack(began)
	return results, nil
}

func (c *Consumer) transact(ctx context.Context, messages []inbox.Message, s *stage) ([]inbox.Result, error) {
	config := &c.config
	if config.BatchHandler != nil {
		return config.Inbox.ProcessBatch(ctx, config.DB, messages, func(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
			return s.run(ctx, tx, func() error { return config.BatchHandler(ctx, tx, fresh) })
		})
	}
	result, err := config.Inbox.Process(ctx, config.DB, messages[0], func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		return s.run(ctx, tx, func() error { return config.Handler(ctx, tx, m) })
	})
	return []inbox.Result{result}, err
}

// run calls the handler; again when the transaction is repeated.
func (s *stage) run(ctx context.Context, tx pgx.Tx, handle func() error) error {
	*s = stage{entered: true}
	err := guard(handle)
	s.done = err == nil
	s.lost = err != nil && ctx.Err() == nil && tx.Conn() != nil && tx.Conn().IsClosed()
	return err
}

// guard turns a panic into an error, so that the transaction is rolled back as
// for any other.
func guard(handle func() error) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = &PanicError{Value: value, Stack: debug.Stack()}
		}
	}()
	return handle()
}

// fault is whose it is that a transaction failed.
type fault uint8

const (
	// faultNone: it was interrupted.
	faultNone fault = iota
	// faultDatabase: the message may succeed unchanged when the database is
	// back. It is no attempt.
	faultDatabase
	// faultMessage: the handler did not get along with the message.
	faultMessage
	// faultHopeless: no further attempt can succeed.
	faultHopeless
)

// judge says whose fault a failed transaction is.
func (c *Consumer) judge(work context.Context, err error) fault {
	attempt, _ := errors.AsType[*attemptError](err)
	switch {
	case work.Err() != nil:
		return faultNone
	case errors.Is(err, inbox.ErrNoID):
		return faultHopeless
	case isError[*PanicError](err):
		c.counters.panics.Add(1)
		return faultMessage
	case !attempt.entered, attempt.lost, isOutage(err):
		// What comes before the handler is the same for every message: a
		// table that is missing must not make poison of all of them.
		return faultDatabase
	case isError[*pgconn.PgError](err), errors.Is(err, pgx.ErrTxCommitRollback):
		return faultMessage // the database answered
	case attempt.done:
		return faultDatabase // it did not, to the commit
	case c.probe(work) != nil:
		// The handler's own error says nothing; perhaps it waited for a
		// database that no longer answers.
		if work.Err() != nil {
			return faultNone
		}
		return faultDatabase
	}
	return faultMessage
}

// isOutage recognises errors that say that the database cannot work for now,
// whatever it is asked.
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
		"25006": // read-only: a primary that became a standby
		return true
	}
	return false
}

// probeTimeout bounds the question whether the database answers.
const probeTimeout = 5 * time.Second

// probe asks whether the database answers.
func (c *Consumer) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	tx, err := c.config.DB.Begin(ctx)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "SELECT 1")
	// The connection goes back to the pool; an error closes it.
	_ = tx.Rollback(ctx)
	return err
}

// errDatabaseAway ends a session.
var errDatabaseAway = errors.New("the database is away for longer than the messages should wait here")

// health is whether the database could be used, as far as transactions tell.
type health struct {
	mu sync.Mutex
	// away is when a transaction last found that it could not; zero while it
	// can.
	away time.Time
}

// databaseGone and databaseBack log the beginning and the end of an outage.
// began is when the transaction did: one from before the outage proves nothing.
func (c *Consumer) databaseGone(err error) {
	c.database.mu.Lock()
	first := c.database.away.IsZero()
	c.database.away = time.Now()
	c.database.mu.Unlock()
	if first {
		c.logger.Warn("the database cannot be used: messages wait for it, and no attempt is counted", "error", err)
	}
}

func (c *Consumer) databaseBack(began time.Time) {
	c.database.mu.Lock()
	back := !c.database.away.IsZero() && began.After(c.database.away)
	if back {
		c.database.away = time.Time{}
	}
	c.database.mu.Unlock()
	if back {
		c.logger.Info("the database can be used again")
	}
}

// awaitDatabase returns when the database answers, or ctx has ended.
func (c *Consumer) awaitDatabase(ctx context.Context) {
	for n := 1; c.probe(ctx) != nil; n++ {
		if !sleep(ctx, c.config.Backoff.pause(n, rand.Float64())) {
			return
		}
	}
}
