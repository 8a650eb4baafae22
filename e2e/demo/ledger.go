package demo

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ledger reads what the order service recorded.
type ledger struct{ pool *pgxpool.Pool }

// counts returns how many messages committed and were rolled back so far.
func (l ledger) counts(ctx context.Context) (committed, rolledBack int, err error) {
	err = l.pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM order_events), (SELECT count(*) FROM undone_events)`).Scan(&committed, &rolledBack)
	return committed, rolledBack, err
}

// pending returns how many messages wait in the outbox.
func (l ledger) pending(ctx context.Context) (n int, err error) {
	err = l.pool.QueryRow(ctx, `SELECT count(*) FROM outbox WHERE published_at IS NULL`).Scan(&n)
	return n, err
}

// moment returns how many messages had committed, and how many of them were
// not marked as published, at one moment.
func (l ledger) moment(ctx context.Context) (committed, pending int, err error) {
	err = l.pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM order_events), (SELECT count(*) FROM outbox WHERE published_at IS NULL)`).Scan(&committed, &pending)
	return committed, pending, err
}

func (l ledger) committed(ctx context.Context) ([]Event, error) {
	rows, err := l.pool.Query(ctx, `SELECT message_id, order_id, outbox_id FROM order_events ORDER BY outbox_id`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (e Event, err error) {
		return e, row.Scan((*[16]byte)(&e.MessageID), &e.Key, &e.Sequence)
	})
}

func (l ledger) undone(ctx context.Context) ([]Undone, error) {
	rows, err := l.pool.Query(ctx, `SELECT message_id, reason FROM undone_events`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (u Undone, err error) {
		return u, row.Scan((*[16]byte)(&u.MessageID), &u.Reason)
	})
}

// paid are the orders whose payment committed.
func (l ledger) paid(ctx context.Context) ([]string, error) {
	rows, err := l.pool.Query(ctx, `SELECT order_id FROM order_events WHERE type = 'OrderPaid'`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
