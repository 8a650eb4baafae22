package inspect

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/outboxrelay/relay/internal/source"
)

// tryLimit bounds a trial, during which a row is locked.
const tryLimit = 5 * time.Second

const (
	// someRowSQL takes a row that nobody has locked, one that is pending if it finds
	// it at once.
	someRowSQL = `
SELECT o.id FROM {outbox} o
WHERE o.id = coalesce((SELECT p.id FROM {outbox} p WHERE p.published_at IS NULL AND p.available_at IS NULL LIMIT 1),
                      (SELECT min(m.id) FROM {outbox} m))
LIMIT 1 FOR UPDATE SKIP LOCKED`

	// noScanSQL keeps the look for a pending row from reading all the others.
	noScanSQL = `SELECT set_config('enable_seqscan', 'off', true)`

	tryMarkSQL = `UPDATE {outbox} o SET published_at = clock_timestamp() WHERE o.id = ANY (ARRAY[$1::bigint])`

	// triedMarkSQL: whether the row is marked now. It may be gone, too.
	triedMarkSQL = `SELECT count(*) FROM {outbox} o WHERE o.id = $1 AND o.published_at IS NOT NULL`

	tryDeleteSQL = `DELETE FROM {outbox} o WHERE o.id = ANY (ARRAY[$1::bigint])`

	triedDeleteSQL = `SELECT CASE WHEN EXISTS (SELECT FROM {outbox} o WHERE o.id = $1) THEN 0 ELSE 1 END`

	// Constraints and triggers that wait for the commit are not to wait.
	immediateSQL = `SET CONSTRAINTS ALL IMMEDIATE`
)

// errTried ends a trial.
var errTried = errors.New("tried")

// try marks or deletes a row, as the relay does with what was published, and rolls
// it back: what triggers and constraints do with a row only a row can tell. Without
// a row nothing is found.
func (d *database) try(ctx context.Context) {
	verb, trySQL, triedSQL := "marked", tryMarkSQL, triedMarkSQL
	if d.config.Outbox.OnPublished == source.Delete {
		verb, trySQL, triedSQL = "deleted", tryDeleteSQL, triedDeleteSQL
	}
	subject := "table " + d.name
	remedy := "let the trigger, rule or constraint that is in the way pass rows that are " + verb + ": until then the relay can record nothing that it publishes"
	found, done := false, int64(0)
	err := source.Within(ctx, d.conn, pgx.ReadWrite, tryLimit, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, noScanSQL, pgx.QueryExecModeExec); err != nil {
			return err
		}
		var id int64
		switch err := tx.QueryRow(ctx, d.expand(someRowSQL), pgx.QueryExecModeExec).Scan(&id); {
		case errors.Is(err, pgx.ErrNoRows):
			return errTried
		case err != nil:
			return err
		}
		found = true
		if _, err := tx.Exec(ctx, d.expand(trySQL), pgx.QueryExecModeExec, id); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, immediateSQL, pgx.QueryExecModeExec); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, d.expand(triedSQL), pgx.QueryExecModeExec, id).Scan(&done); err != nil {
			return err
		}
		return errTried // so that it is rolled back
	})
	pgErr, _ := errors.AsType[*pgconn.PgError](err)
	switch {
	case errors.Is(err, errTried) && found && done == 0:
		d.add(Error, subject, "a row that was to be "+verb+" was not, without an error", remedy)
	case errors.Is(err, errTried):
	case pgErr != nil && (pgErr.Code == "57014" || pgErr.Code == "55P03"): // query_canceled, lock_not_available
		d.add(Warning, subject, fmt.Sprintf("whether a row can be %s could not be seen within %s: %v", verb, tryLimit, err), "look at what its triggers and foreign keys do, and who has locks on it")
	case pgErr != nil && found:
		d.add(Error, subject, fmt.Sprintf("a row cannot be %s: %v", verb, err), remedy)
	default:
		d.fail(subject, err)
	}
}

func (d *database) expand(sql string) string { return strings.ReplaceAll(sql, "{outbox}", d.name) }
