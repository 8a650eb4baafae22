// Package operator does what people do about messages that the broker refused,
// and about messages that shall be published again: it lists, retries, skips,
// discards and replays, each write in one transaction with its audit record.
//
// It needs no running relay, and gets along with any number of them. Two things
// it owes to them. An entry of the table of parked keys is never deleted here:
// relays look for the rows that wait behind it by the entry, and remove it when
// nothing waits any more. And it takes locks as a relay does, waits for a bounded
// time only, and begins anew where the server ended a deadlock.
package operator

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/outboxrelay/relay/internal/source"
)

const (
	// lockTimeout is how long a write waits for a row that a relay is publishing
	// just now. That takes milliseconds, mostly.
	lockTimeout = 10 * time.Second
	// idleTimeout frees the locks of a command that froze.
	idleTimeout = 30 * time.Second
	// lookTimeout bounds questions whose answer is worth some seconds and not more.
	lookTimeout = 5 * time.Second
	// attempts is how often a transaction is begun that the server ended for the
	// sake of another.
	attempts = 5
	// batchSize is how many messages one transaction changes where the selection is
	// not by name: relays should not wait for a hundred thousand.
	batchSize = 1000
)

// Options say whose failures an Operator deals with.
type Options struct {
	Schema, Table string
	Ordering      source.Ordering
	OnPublished   source.OnPublished
	// Retention is how long published rows stay; 0: for ever.
	Retention time.Duration
	// User is recorded in the audit table: who does this, as far as is known.
	User string
}

// Operator works on one connection at a time, which Close closes. It is for one
// goroutine.
type Operator struct {
	conn       *pgx.Conn
	options    Options
	statements statements
	// What tests shorten.
	lockTimeout, lookTimeout time.Duration
	batchSize                int
	// gone is what became of messages that were selected, and are not there any more.
	gone []Gone
}

// New returns an Operator on the connection.
func New(conn *pgx.Conn, options Options) *Operator {
	return &Operator{
		conn: conn, options: options, statements: newStatements(options.Schema, options.Table),
		lockTimeout: lockTimeout, lookTimeout: lookTimeout, batchSize: batchSize,
	}
}

// ErrBusy says that somebody else has a lock that was needed: mostly a relay
// that publishes the message at this moment. Nothing was changed.
var ErrBusy = errors.New("somebody else has the message locked, mostly a relay that is publishing it just now; nothing was changed: try again in a moment")

// ErrChanged says that what was selected is not as it was any more. Nothing was
// changed.
var ErrChanged = errors.New("it has changed since it was looked up, by a relay or by another operator; nothing was changed: list again")

// write runs f in a transaction that waits for locks a bounded time, and again
// when the server ended it in favour of another.
func (o *Operator) write(ctx context.Context, f func(ctx context.Context, tx pgx.Tx) error) error {
	for attempt := 1; ; attempt++ {
		tx, err := o.begin(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
		if err != nil {
			return o.explain(err)
		}
		committing := false
		if err = f(ctx, tx); err == nil {
			committing = true
			err = tx.Commit(ctx)
		} else if rollbackErr := tx.Rollback(ctx); rollbackErr != nil && !errors.Is(rollbackErr, pgx.ErrTxClosed) {
			err = fmt.Errorf("%w (and the rollback: %w)", err, rollbackErr)
		}
		code := sqlState(err)
		switch {
		case (code == "40P01" || code == "40001") && attempt < attempts: // deadlock_detected, serialization_failure
			continue
		case err != nil && committing && code == "":
			return fmt.Errorf("%w: the connection was lost at the commit, and it is not known whether it was done: list again", err)
		}
		return o.explain(err)
	}
}

// read runs f in a transaction that sees one state of the database and writes
// nothing, so that it need not be committed.
func (o *Operator) read(ctx context.Context, f func(ctx context.Context, tx pgx.Tx) error) error {
	tx, err := o.begin(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return o.explain(err)
	}
	err = f(ctx, tx)
	if rollbackErr := tx.Rollback(ctx); err == nil {
		err = rollbackErr
	}
	return o.explain(err)
}

// begin begins a transaction with the settings of this package. A server ends
// a connection that is idle for long, as while somebody is asked; then there is a
// new one.
func (o *Operator) begin(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error) {
	settings := []any{milliseconds(o.lockTimeout), milliseconds(idleTimeout)}
	tx, err := source.Begin(ctx, o.conn, options, settingsSQL, settings...)
	if err != nil && o.conn.IsClosed() && ctx.Err() == nil {
		conn, connectErr := pgx.ConnectConfig(ctx, o.conn.Config())
		if connectErr != nil {
			return nil, connectErr
		}
		o.conn = conn
		tx, err = source.Begin(ctx, o.conn, options, settingsSQL, settings...)
	}
	return tx, err
}

// Close closes the connection.
func (o *Operator) Close(ctx context.Context) error { return o.conn.Close(ctx) }

// query runs the statement and reads all its rows.
func query[T any](ctx context.Context, tx pgx.Tx, to pgx.RowToFunc[T], sql string, arguments ...any) ([]T, error) {
	rows, err := tx.Query(ctx, sql, append([]any{exec}, arguments...)...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, to)
}

// notify wakes an idle relay at the commit.
func (o *Operator) notify(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, notifySQL, exec, o.options.Table)
	return err
}

// explain adds the remedy to the errors that operators meet.
func (o *Operator) explain(err error) error {
	switch sqlState(err) {
	case "":
		return err
	case "55P03": // lock_not_available
		return ErrBusy
	case "42P01", "3F000": // undefined_table, invalid_schema_name
		return fmt.Errorf("%w: run `relay migrate`, or correct outbox.schema and outbox.table", err)
	case "23502": // not_null_violation
		pgErr, _ := errors.AsType[*pgconn.PgError](err)
		return fmt.Errorf("%w: this column is not the relay's own: ALTER TABLE %s ALTER COLUMN %s SET DEFAULT a value (it can be dropped afterwards), or allow null",
			err, pgx.Identifier{pgErr.SchemaName, pgErr.TableName}.Sanitize(), pgx.Identifier{pgErr.ColumnName}.Sanitize())
	case "23503", "23001": // foreign_key_violation, restrict_violation
		return fmt.Errorf("%w: a foreign key keeps the outbox from giving its rows away: drop it, or make it ON DELETE CASCADE or SET NULL", err)
	case "23514", "23505", "P0001": // check_violation, unique_violation, raise_exception
		return fmt.Errorf("%w: nothing was changed: let the table's constraint, trigger or partitions take this row", err)
	case "42501": // insufficient_privilege
		return fmt.Errorf("%w: this role lacks a privilege of an operator; docs/operations.md lists them under Privileges", err)
	}
	if remedy := source.Explain(err).Remedy; remedy != "" {
		return fmt.Errorf("%w: %s", err, remedy)
	}
	return err
}

func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// bounded runs f and reports false, without an error, when it took longer than
// a look is worth. Then the transaction can do nothing any more.
func (o *Operator) bounded(ctx context.Context, tx pgx.Tx, f func() error) (bool, error) {
	if _, err := tx.Exec(ctx, boundSQL, exec, milliseconds(o.lookTimeout)); err != nil {
		return false, err
	}
	err := f()
	if sqlState(err) == "57014" && ctx.Err() == nil { // query_canceled
		return false, nil
	}
	return err == nil, err
}
