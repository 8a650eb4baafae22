package migrations

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// A statement that waits for a lock on a table makes every later writer wait
	// behind it, so it gives up soon, and a little later the more often it did.
	shortestLockWait = 100 * time.Millisecond
	longestLockWait  = 500 * time.Millisecond
	lockAttempts     = 30
	lockPause        = time.Second

	// holderSQL is who has been holding a lock on the table ($1 schema, $2 name)
	// for the longest time.
	holderSQL = `
SELECT a.pid, extract(epoch FROM clock_timestamp() - a.xact_start)::bigint
FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  AND n.nspname = $1 AND c.relname = $2
ORDER BY a.xact_start LIMIT 1`
)

// boundsSQL bounds the waits for locks, and lifts the role's bound on
// statements: to validate a constraint takes as long as the table is large.
func boundsSQL(lockWait time.Duration) string {
	return `SET LOCAL lock_timeout = ` + strconv.FormatInt(lockWait.Milliseconds(), 10) + `;
SET LOCAL statement_timeout = 0`
}

// applyBetween applies the migration between the transactions of writers: it
// tries again until it got its locks without holding anybody up.
func (t Target) applyBetween(ctx context.Context, conn *pgx.Conn, m Migration) (done bool, err error) {
	wait := shortestLockWait
	for range lockAttempts {
		done, err = t.apply(ctx, conn, m, wait)
		if !isLockTimeout(err) {
			return done, err
		}
		select {
		case <-ctx.Done():
			return false, errors.Join(err, ctx.Err())
		case <-time.After(lockPause):
		}
		wait = min(2*wait, longestLockWait)
	}
	return false, t.held(ctx, conn, err)
}

func isLockTimeout(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == "55P03" // lock_not_available
}

// held says whose transaction is in the way.
func (t Target) held(ctx context.Context, conn *pgx.Conn, err error) error {
	table := t.identifier("")
	var pid, seconds int64
	if conn.QueryRow(ctx, holderSQL, pgx.QueryExecModeExec, t.Schema, t.Table).Scan(&pid, &seconds) != nil {
		return fmt.Errorf("%w: %d times within %s: a transaction that uses %s does not end; let it end, or end it, and run the migration again", err, lockAttempts, longestLockWait, table)
	}
	return fmt.Errorf("%w: %d times within %s: process %d has used %s in a transaction for %d s; let that end, or SELECT pg_terminate_backend(%[4]d), and run the migration again",
		err, lockAttempts, longestLockWait, pid, table, seconds)
}
