package source

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Bounded runs each statement in a transaction of its own, as Within does.
type Bounded struct {
	DB     Beginner
	Access pgx.TxAccessMode
	Limit  time.Duration
}

// Exec runs a statement.
func (b Bounded) Exec(ctx context.Context, sql string, arguments ...any) (tag pgconn.CommandTag, err error) {
	err = Within(ctx, b.DB, b.Access, b.Limit, func(tx pgx.Tx) error {
		tag, err = tx.Exec(ctx, sql, arguments...)
		return err
	})
	return tag, err
}

// Query runs a statement that reads. Its transaction ends when the rows are
// closed; the collectors of pgx do that.
func (b Bounded) Query(ctx context.Context, sql string, arguments ...any) (pgx.Rows, error) {
	tx, err := beginLimited(ctx, b.DB, b.Access, b.Limit)
	if err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, sql, arguments...)
	if err != nil {
		_ = tx.Rollback(ctx)
		return nil, err
	}
	return &boundedRows{Rows: rows, end: func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }}, nil
}

// QueryRow runs a statement that reads one row.
func (b Bounded) QueryRow(ctx context.Context, sql string, arguments ...any) pgx.Row {
	rows, err := b.Query(ctx, sql, arguments...)
	return boundedRow{rows, err}
}

// boundedRows end their transaction when they are closed.
type boundedRows struct {
	pgx.Rows
	end func()
}

// Close implements pgx.Rows.
func (r *boundedRows) Close() {
	r.Rows.Close()
	if r.end != nil {
		r.end()
		r.end = nil
	}
}

type boundedRow struct {
	rows pgx.Rows
	err  error
}

// Scan implements pgx.Row.
func (r boundedRow) Scan(destinations ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := r.rows.Scan(destinations...); err != nil {
		return err
	}
	r.rows.Close()
	return r.rows.Err()
}
