package inspect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/migrations"
)

// notifyWait is how long a notification may take to arrive.
const notifyWait = 2 * time.Second

// statementLimit bounds each statement, whatever the role's own bounds are.
const statementLimit = 30 * time.Second

// The statements of this file.
const (
	serverSQL = `SELECT current_setting('server_version'), pg_is_in_recovery(), current_user`

	columnsSQL = `SELECT a.attname, format_type(a.atttypid, NULL)
FROM pg_attribute a WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped`

	indexesSQL = `SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = to_regclass($1) AND i.indisvalid AND i.indisready`

	grantsSQL = `SELECT
    has_table_privilege(to_regclass($1), 'SELECT'),
    has_table_privilege(to_regclass($1), 'UPDATE') OR has_column_privilege(to_regclass($1), 'published_at', 'UPDATE'),
    has_table_privilege(to_regclass($1), 'DELETE')`

	schemaSQL = `SELECT count(*) > 0, coalesce(bool_and(has_schema_privilege(oid, 'USAGE')), false) FROM pg_namespace WHERE nspname = $1`
)

// columnTypes are the columns that the relay reads, and the types that it
// understands.
var columnTypes = []struct {
	name  string
	types []string
}{
	{"id", []string{"bigint"}},
	{"message_id", []string{"uuid"}},
	{"topic", []string{"text"}},
	{"key", []string{"text"}},
	{"type", []string{"text"}},
	{"payload", []string{"bytea"}},
	{"content_type", []string{"text"}},
	{"headers", []string{"jsonb"}},
	{"available_at", []string{"timestamp with time zone"}},
	{"created_at", []string{"timestamp with time zone"}},
	{"published_at", []string{"timestamp with time zone"}},
}

// Database inspects the server, the table, the grants and, when it is used,
// the way of notifications. It also returns an open connection where it could
// make one, which the caller closes; nil otherwise.
func Database(ctx context.Context, c *config.Config) ([]Finding, *pgx.Conn) {
	d := &database{config: c, name: pgx.Identifier{c.Outbox.Schema, c.Outbox.Table}.Sanitize()}
	conn := d.connect(ctx)
	if conn == nil {
		return d.findings, nil
	}
	d.conn, d.db = conn, source.Bounded{DB: conn, Access: pgx.ReadOnly, Limit: statementLimit}
	if !d.server(ctx) {
		return d.findings, conn
	}
	if d.table(ctx) {
		d.migrations(ctx)
		granted := d.grants(ctx)
		d.sequence(ctx)
		d.obstacles(ctx)
		if granted {
			d.try(ctx)
		}
		d.failures(ctx)
		d.rowSecurity(ctx)
		d.barrier(ctx)
		if c.Outbox.Notify {
			d.notify(ctx)
		}
	}
	d.inbox(ctx)
	return d.findings, conn
}

type database struct {
	config   *config.Config
	name     string
	conn     *pgx.Conn
	db       source.Bounded // conn, to read
	findings []Finding
}

func (d *database) add(level Level, subject, message, remedy string) {
	d.findings = append(d.findings, Finding{level, subject, message, remedy})
}

// fail adds what an error of the database means.
func (d *database) fail(subject string, err error) {
	d.add(Error, subject, err.Error(), source.Explain(err).Remedy)
}

// missing adds that the role lacks a privilege.
func (d *database) missing(subject, privilege, object string) {
	d.add(Error, subject, "missing: "+privilege, fmt.Sprintf("GRANT %s ON %s TO %s", privilege, object, d.role()))
}

// role is the quoted name of the relay's role.
func (d *database) role() string { return pgx.Identifier{d.conn.Config().User}.Sanitize() }

func (d *database) connect(ctx context.Context) *pgx.Conn {
	pool, err := d.config.Database.PoolConfig()
	if err != nil {
		d.add(Error, "database", err.Error(), "correct database.url")
		return nil
	}
	conn, err := pgx.ConnectConfig(ctx, pool.ConnConfig)
	if err != nil {
		d.fail("database", err)
		return nil
	}
	if err := source.SetUp(ctx, conn); err != nil {
		d.fail("database", err)
	}
	return conn
}

func (d *database) server(ctx context.Context) bool {
	var version, user string
	var readOnly bool
	// The relay's transactions are READ WRITE whatever the role's default is.
	write := source.Bounded{DB: d.conn, Access: pgx.ReadWrite, Limit: statementLimit}
	err := write.QueryRow(ctx, serverSQL).Scan(&version, &readOnly, &user)
	if err != nil && source.Explain(err).Kind != "read_only" {
		d.fail("database", err)
		return false
	}
	if readOnly || err != nil {
		d.add(Error, "database", "the server is a standby or read-only", "point database.url at the primary, or name all hosts and add target_session_attrs=read-write")
		return false
	}
	d.add(OK, "database", fmt.Sprintf("PostgreSQL %s, connected as %s", version, user), "")
	return true
}

func (d *database) table(ctx context.Context) bool {
	subject := "table " + d.name
	var schemaExists, usage bool
	if err := d.db.QueryRow(ctx, schemaSQL, d.config.Outbox.Schema).Scan(&schemaExists, &usage); err != nil {
		d.fail(subject, err)
		return false
	}
	if schemaExists && !usage {
		schema := "SCHEMA " + pgx.Identifier{d.config.Outbox.Schema}.Sanitize()
		d.missing("grants on "+d.name, "USAGE", schema)
		return false // without it, nothing in the schema can be looked at
	}
	found, err := d.columns(ctx, d.name)
	if err != nil {
		d.fail(subject, err)
		return false
	}
	if len(found) == 0 {
		message := "the table does not exist"
		if !schemaExists {
			message = fmt.Sprintf("the schema %q does not exist", d.config.Outbox.Schema)
		}
		d.add(Error, subject, message, "run `relay migrate`, or correct outbox.schema and outbox.table")
		return false
	}
	complete := true
	for _, column := range columnTypes {
		kind, ok := found[column.name]
		switch {
		case !ok:
			complete = false
			d.add(Error, subject, fmt.Sprintf("column %s is missing", column.name), "run `relay migrate`, or add the column as docs/writing.md has it")
		case !slices.Contains(column.types, kind):
			complete = false
			d.add(Error, subject, fmt.Sprintf("column %s is %s, not %s", column.name, kind, strings.Join(column.types, " or ")), "change the column's type")
		}
	}
	if complete {
		d.add(OK, subject, "has all columns", "")
		d.indexes(ctx, subject, d.name, []string{"_pending_idx", "_delayed_idx"})
	}
	return complete
}

// columns returns a table's columns with their types, none where there is no
// such table.
func (d *database) columns(ctx context.Context, table string) (map[string]string, error) {
	rows, err := d.db.Query(ctx, columnsSQL, table)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	var name, kind string
	_, err = pgx.ForEachRow(rows, []any{&name, &kind}, func() error { found[name] = kind; return nil })
	return found, err
}

// indexes looks for the table's indexes with these suffixes.
func (d *database) indexes(ctx context.Context, subject, table string, suffixes []string) {
	if len(suffixes) == 0 {
		return
	}
	rows, err := d.db.Query(ctx, indexesSQL, table)
	if err != nil {
		d.fail(subject, err)
		return
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		d.fail(subject, err)
		return
	}
	for _, suffix := range suffixes {
		if index := d.config.Outbox.Table + suffix; !slices.Contains(names, index) {
			d.add(Warning, subject, fmt.Sprintf("index %s is missing or invalid: claims read the whole table", index),
				"create it as `relay migrate --print` has it")
		}
	}
}

func (d *database) migrations(ctx context.Context) {
	target := migrations.Target{Schema: d.config.Outbox.Schema, Table: d.config.Outbox.Table}
	var pending []migrations.Migration
	err := source.Within(ctx, d.conn, pgx.ReadOnly, statementLimit, func(pgx.Tx) (err error) {
		pending, err = target.Pending(ctx, d.conn)
		return err
	})
	if err != nil {
		// A relay's role need not read the table of migrations.
		d.add(Warning, "migrations", "cannot tell whether any is pending: "+err.Error(), fmt.Sprintf("GRANT SELECT ON %s TO %s; or run `relay migrate --dry-run` as the table's owner",
			pgx.Identifier{d.config.Outbox.Schema, d.config.Outbox.Table + "_migrations"}.Sanitize(), d.role()))
		return
	}
	for _, m := range pending {
		d.add(Error, "migrations", fmt.Sprintf("migration %d (%s) is pending", m.Version, m.Name), "run `relay migrate`")
	}
	if len(pending) == 0 {
		d.add(OK, "migrations", "all are applied", "")
	}
}

// grants reports whether the role may do what a relay does all the time.
func (d *database) grants(ctx context.Context) bool {
	subject := "grants on " + d.name
	var selects, updates, deletion bool
	if err := d.db.QueryRow(ctx, grantsSQL, d.name).Scan(&selects, &updates, &deletion); err != nil {
		d.fail(subject, err)
		return false
	}
	before := len(d.findings)
	if !selects {
		d.missing(subject, "SELECT", d.name)
	}
	if !updates {
		d.missing(subject, "UPDATE (published_at)", d.name)
	}
	if !deletion && deletes(d.config) {
		d.missing(subject, "DELETE", d.name)
	}
	if len(d.findings) == before {
		d.add(OK, subject, "sufficient", "")
	}
	return selects && (updates || d.config.Outbox.OnPublished == source.Delete) && (deletion || !deletes(d.config))
}

// rowSecurity looks for rows that this role does not see.
func (d *database) rowSecurity(ctx context.Context) {
	findings, err := RowSecurity(ctx, d.db, d.config)
	if err != nil {
		d.fail("grants on "+d.name, err)
	}
	d.findings = append(d.findings, findings...)
}

// notify sends a notification to itself: a transaction pooler accepts LISTEN
// and delivers nothing.
func (d *database) notify(ctx context.Context) {
	const subject = "notifications"
	remedy := "behind a transaction pooler set database.direct_url, or outbox.notify: false; polling works all the same"
	settings, err := d.config.Database.DirectConfig()
	if err != nil {
		d.add(Error, subject, err.Error(), "correct database.direct_url")
		return
	}
	conn, err := pgx.ConnectConfig(ctx, settings)
	if err != nil {
		// Remedies speak of database.url.
		remedy := source.Explain(err).Remedy
		if d.config.Database.DirectURL != "" {
			remedy = strings.ReplaceAll(remedy, "database.url", "database.direct_url")
		}
		d.add(Error, subject, "database.direct_url: "+err.Error(), remedy)
		return
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	// The role's idle_session_timeout would end what waits.
	if err := source.SetUp(ctx, conn); err != nil {
		d.fail(subject, err)
		return
	}
	channel := fmt.Sprintf("outbox_relay_check_%d", conn.PgConn().PID())
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		d.add(Warning, subject, err.Error(), remedy)
		return
	}
	notifier := source.Bounded{DB: d.conn, Access: pgx.ReadWrite, Limit: statementLimit}
	if _, err := notifier.Exec(ctx, "NOTIFY "+channel); err != nil {
		d.add(Warning, subject, err.Error(), remedy)
		return
	}
	waiting, cancel := context.WithTimeout(ctx, notifyWait)
	defer cancel()
	switch _, err := conn.WaitForNotification(waiting); {
	case err == nil:
		d.add(OK, subject, "arrive", "")
	case errors.Is(err, context.DeadlineExceeded):
		d.add(Warning, subject, "do not arrive", remedy)
	default:
		d.add(Warning, subject, err.Error(), remedy)
	}
}
