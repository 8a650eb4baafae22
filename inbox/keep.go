package inbox

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// pruneInterval is how often KeepPruned prunes.
const pruneInterval = time.Hour

const (
	// pruneTurnSQL takes the turn to prune the table until the transaction ends,
	// which takes as long as a pass does: the role's own bounds must not end it.
	pruneTurnSQL = `
SELECT pg_try_advisory_xact_lock(hashtextextended('outbox-relay:prune:' || $1::text, 0))
FROM (SELECT CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL
                  THEN set_config('transaction_timeout', '0', true) END OFFSET 0) s`

	// pruneIdleSQL follows it. Without arguments it goes by the simple protocol,
	// which ends the portal of the query before it, and with that its snapshot:
	// kept for a whole pass, that would keep dead rows in all tables.
	pruneIdleSQL = `SET LOCAL idle_in_transaction_session_timeout = 0`
)

// KeepPruned calls Prune within the first minutes and then once an hour, about,
// until ctx ends, unless another process does so at that moment. It takes two connections of the pool while it
// prunes, so that it does nothing with a pool of one. Failures are logged, and
// tried again the next time; a nil logger is slog.Default(). The role needs SELECT
// and DELETE.
func (i *Inbox) KeepPruned(ctx context.Context, db *pgxpool.Pool, logger *slog.Logger) {
	if db.Config().MaxConns < 2 {
		i.warn(logger, errors.New("the pool has one connection, and pruning takes two: raise its MaxConns, or schedule `relay prune`"))
		return
	}
	i.keepPruned(ctx, pruneInterval, logger, func() (int64, bool, error) { return i.takeTurn(ctx, db) })
}

// takeTurn prunes unless somebody else does.
func (i *Inbox) takeTurn(ctx context.Context, db *pgxpool.Pool) (deleted int64, turn bool, err error) {
	err = pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, pruneTurnSQL, i.identifier("")).Scan(&turn); err != nil || !turn {
			return err
		}
		if _, err := tx.Exec(ctx, pruneIdleSQL); err != nil {
			return err
		}
		deleted, err = i.Prune(ctx, db)
		return err
	})
	return deleted, turn, err
}

// KeepPrunedSQL is KeepPruned for database/sql.
func (i *Inbox) KeepPrunedSQL(ctx context.Context, db *sql.DB, logger *slog.Logger) {
	if most := db.Stats().MaxOpenConnections; most == 1 {
		i.warn(logger, errors.New("the pool has one connection, and pruning takes two: raise SetMaxOpenConns, or schedule `relay prune`"))
		return
	}
	i.keepPruned(ctx, pruneInterval, logger, func() (int64, bool, error) { return i.takeTurnSQL(ctx, db) })
}

// takeTurnSQL is takeTurn for database/sql.
func (i *Inbox) takeTurnSQL(ctx context.Context, db *sql.DB) (deleted int64, turn bool, err error) {
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return 0, false, err
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	if err := tx.QueryRowContext(ctx, pruneTurnSQL, i.identifier("")).Scan(&turn); err != nil || !turn {
		return 0, turn, err
	}
	if _, err := tx.ExecContext(ctx, pruneIdleSQL); err != nil {
		return 0, turn, err
	}
	deleted, err = i.PruneSQL(ctx, db)
	return deleted, turn, err
}

// keepPruned runs passes, at random moments of the interval, so that the processes
// of a deployment do not all ask at once.
func (i *Inbox) keepPruned(ctx context.Context, interval time.Duration, logger *slog.Logger, pass func() (deleted int64, turn bool, err error)) {
	failed := ""
	// The first pass is soon, or a process that is deployed often would never
	// come to it.
	for pause := rand.N(interval / 10); ; pause = interval/2 + rand.N(interval) {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		deleted, turn, err := pass()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && err.Error() != failed:
			failed = err.Error()
			i.warn(logger, err)
		case err == nil && turn:
			failed = ""
			i.log(logger).Debug("the inbox was pruned", "ids", deleted)
		}
	}
}

func (i *Inbox) warn(logger *slog.Logger, err error) {
	i.log(logger).Warn("the inbox cannot be pruned; ids stay longer than their retention, and nothing else waits for it", "error", err)
}

func (i *Inbox) log(logger *slog.Logger) *slog.Logger {
	if logger == nil {
		logger = slog.Default()
	}
	return logger.With("inbox", i.identifier(""))
}
