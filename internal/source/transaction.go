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
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
}

// Within runs f in a transaction whose statements may take limit each, or any
// time where it is 0, whatever the defaults of the role say: neither its
// default_transaction_read_only nor its timeouts count.
func Within(ctx context.Context, db Beginner, access pgx.TxAccessMode, limit time.Duration, f func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: access}, func(tx pgx.Tx) error {
		if err := SetLimits(ctx, tx, limit); err != nil {
			return err
		}
		return f(tx)
	})
}

// SetLimits is what Within does to its transaction.
func SetLimits(ctx context.Context, tx pgx.Tx, limit time.Duration) error {
	_, err := tx.Exec(ctx, limitsSQL, pgx.QueryExecModeExec, string(milliseconds(limit)), string(milliseconds(tableLockLimit)))
	return err
}
