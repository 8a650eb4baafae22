package migrations

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Pending returns the migrations that the database lacks, in the order in
// which Apply runs them. It writes nothing.
func (t Target) Pending(ctx context.Context, conn *pgx.Conn) ([]Migration, error) {
	all, err := t.Migrations()
	if err != nil {
		return nil, err
	}
	applied, err := t.applied(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.identifier("_migrations"), err)
	}
	return slices.DeleteFunc(all, func(m Migration) bool { return slices.Contains(applied, m.Version) }), nil
}

// Apply runs the pending migrations and calls report, which may be nil, after
// each that this call committed. When it fails, what was reported stays.
func (t Target) Apply(ctx context.Context, conn *pgx.Conn, report func(Migration)) error {
	pending, err := t.Pending(ctx, conn)
	if err != nil {
		return err
	}
	for _, m := range pending {
		done, err := t.applyBetween(ctx, conn, m)
		if err != nil {
			return fmt.Errorf("migration %d (%s): %w", m.Version, m.Name, explain(err, t))
		}
		if done && report != nil {
			report(m)
		}
	}
	return nil
}

// apply runs one migration unless somebody else did meanwhile. It waits so long
// for each lock on a table.
func (t Target) apply(ctx context.Context, conn *pgx.Conn, m Migration, lockWait time.Duration) (done bool, err error) {
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}, func(tx pgx.Tx) error {
		// An index of a large table takes longer than a role's statements may.
		if _, err := tx.Exec(ctx, limitsSQL, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, t.lockSQL(), pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		applied, err := t.applied(ctx, conn)
		if err != nil || slices.Contains(applied, m.Version) {
			return err
		}
		// The simple protocol takes many statements at once.
		script := strings.Join([]string{boundsSQL(lockWait), t.prepareSQL(), m.SQL, t.recordSQL(m)}, ";\n")
		if _, err := conn.PgConn().Exec(ctx, script).ReadAll(); err != nil {
			return err
		}
		done = true
		return nil
	})
	return done, err
}

// limitsSQL lifts the role's own bounds for the transaction.
const limitsSQL = `SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true),
       set_config('idle_in_transaction_session_timeout', '60000', true),
       CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL
            THEN set_config('transaction_timeout', '0', true) END`

// applied lists the recorded versions; none when the table is not there.
func (t Target) applied(ctx context.Context, conn *pgx.Conn) ([]int, error) {
	// Not to_regclass: it may answer from a cache that does not know yet what
	// another migrator committed while this one waited for the lock.
	var exists bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2)`,
		pgx.QueryExecModeExec, t.Schema, t.Table+"_migrations").Scan(&exists)
	if err != nil || !exists {
		return nil, err
	}
	rows, err := conn.Query(ctx, `SELECT version FROM `+t.identifier("_migrations"), pgx.QueryExecModeExec)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int])
}

// lockSQL makes two migrators of one schema wait for each other until commit:
// they may both have to make it, whichever tables are theirs.
func (t Target) lockSQL() string {
	return `SELECT pg_advisory_xact_lock(hashtextextended(` + literal("outbox-relay:migrate:"+pgx.Identifier{t.Schema}.Sanitize()) + `, 0))`
}

// prepareSQL makes the schema and the table of records where they are missing.
// CREATE SCHEMA IF NOT EXISTS alone would ask for a privilege on the database
// even where the schema exists.
func (t Target) prepareSQL() string {
	schema := pgx.Identifier{t.Schema}.Sanitize()
	return `DO ` + literal(`BEGIN IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = `+literal(t.Schema)+`) THEN CREATE SCHEMA `+schema+`; END IF; END`) + `;
CREATE TABLE IF NOT EXISTS ` + t.identifier("_migrations") + ` (
    version    int PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)`
}

func (t Target) recordSQL(m Migration) string {
	return `INSERT INTO ` + t.identifier("_migrations") + ` (version, name) VALUES (` + strconv.Itoa(m.Version) + `, ` + literal(m.Name) + `)`
}

// literal quotes s as an SQL string whatever standard_conforming_strings says.
func literal(s string) string {
	quoted := `'` + strings.ReplaceAll(s, `'`, `''`) + `'`
	if strings.Contains(s, `\`) {
		return ` E` + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}

// explain adds the remedy to the errors that people meet.
func explain(err error, t Target) error {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return err
	}
	switch pgErr.Code {
	case "42P07": // duplicate_table
		return fmt.Errorf("%w: it exists but %s does not record who made it; rename it, or set %[3]s.schema or %[3]s.table to another name", err, t.identifier("_migrations"), t.set())
	case "42501": // insufficient_privilege
		return fmt.Errorf("%w: run the migration as the owner of schema %s, or GRANT CREATE ON SCHEMA %[2]s to this user", err, pgx.Identifier{t.Schema}.Sanitize())
	case "0A000", "25006": // feature_not_supported, read_only_sql_transaction
		if pgErr.Code == "0A000" && !strings.Contains(pgErr.Message, "recovery") {
			return err
		}
		return fmt.Errorf("%w: this server is a standby or read-only; connect to the primary (target_session_attrs=read-write)", err)
	}
	return err
}
