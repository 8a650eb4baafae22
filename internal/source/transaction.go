package source

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// backlogLimit bounds a statement that reads all that is pending.
	backlogLimit = 10 * time.Minute
	// tableLockLimit is how long a look waits for somebody who has the whole table
	// locked.
	tableLockLimit = 10 * time.Second
)

// Beginner begins transactions: *pgxpool.Pool, *pgxpool.Conn or *pgx.Conn.
type Beginner interface {
	SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults
}

// Begin begins a transaction and runs a statement with its settings, in one round
// trip: a transaction that is idle in between is under the role's settings.
func Begin(ctx context.Context, db Beginner, options pgx.TxOptions, settings string, arguments ...any) (pgx.Tx, error) {
	batch := &pgx.Batch{}
	batch.BeginTx(options)
	batch.Queue(settings, arguments...)
	results := db.SendBatch(ctx, batch)
	tx := results.Tx()
	if err := results.Close(); err != nil {
		if tx != nil {
			_ = tx.Rollback(context.WithoutCancel(ctx)) // the first error says more
		}
		return nil, err
	}
	return tx, nil
}

// beginLimited begins a transaction whose statements may take limit each, or any time
// where it is 0, whatever the defaults of the role say: neither its
// default_transaction_read_only nor its timeouts count.
func beginLimited(ctx context.Context, db Beginner, access pgx.TxAccessMode, limit time.Duration) (pgx.Tx, error) {
	return Begin(ctx, db, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: access}, limitsSQL, string(milliseconds(limit)), string(milliseconds(tableLockLimit)))
}

// Within runs f in a transaction, and commits it unless f returns an error. The
// defaults of the role do not count: each statement may take limit, or any time
// where it is 0.
func Within(ctx context.Context, db Beginner, access pgx.TxAccessMode, limit time.Duration, f func(pgx.Tx) error) error {
	tx, err := beginLimited(ctx, db, access, limit)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // does nothing after the commit
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit(ctx)
}
