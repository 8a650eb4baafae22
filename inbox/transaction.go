package inbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// rollbackTimeout bounds a rollback, which the end of the caller's context must
// not cancel. A connection that does not answer in time is closed.
const rollbackTimeout = 5 * time.Second

// sender is what can begin a transaction and run queries in it in one round
// trip.
type sender interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// begin begins a transaction, or a savepoint when db is one, and runs in it
// what claim queues. Where db allows, all of it takes one round trip. After an
// error there is nothing to roll back.
func begin(ctx context.Context, db Beginner, claim func(*pgx.Batch)) (pgx.Tx, error) {
	batch := &pgx.Batch{}
	switch db := db.(type) {
	case *pgxpool.Pool, *pgxpool.Conn, *pgx.Conn:
		batch.BeginTx(pgx.TxOptions{})
		claim(batch)
		results := db.(sender).SendBatch(ctx, batch)
		tx := results.Tx()
		if err := results.Close(); err != nil {
			rollback(ctx, tx)
			return nil, err
		}
		return tx, nil
	}
	tx, err := db.Begin(ctx)
	if err != nil {
		return nil, err
	}
	claim(batch)
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		rollback(ctx, tx)
		return nil, err
	}
	return tx, nil
}

// rollback ends a transaction and gives its connection back. There is nothing
// to do about an error: the connection is closed then, and the server rolls
// back.
func rollback(ctx context.Context, tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	_ = tx.Rollback(ctx)
}
