package inspect

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/migrations"
)

// inboxColumns are those that consumers write and `relay prune` reads.
var inboxColumns = []string{"consumer", "message_id", "received_at", "processed_at", "source", "source_partition", "source_offset"}

// inboxElsewhere is what to do where there is no inbox.
const inboxElsewhere = "run `relay migrate --only inbox`, correct inbox.schema and inbox.table, or leave section inbox out: consumers' tables are often in a database of their own"

// inbox looks at the consumers' table: whether it is one, and whether this role
// may prune it. A relay publishes without, so nothing of it is an error.
func (d *database) inbox(ctx context.Context) {
	schema, table := d.config.Inbox.Schema, d.config.Inbox.Table
	name := pgx.Identifier{schema, table}.Sanitize()
	subject := "table " + name
	found, exists := d.inboxTable(ctx, subject, name)
	if !exists {
		return
	}
	var missing []string
	for _, column := range inboxColumns {
		if _, ok := found[column]; !ok {
			missing = append(missing, column)
		}
	}
	switch {
	case len(missing) == len(inboxColumns) && !d.config.NamesInbox():
		return // another table that has the name
	case len(missing) > 0:
		d.add(Warning, subject, "no inbox, or not as this version knows it: missing: "+strings.Join(missing, ", "),
			"run `relay migrate --only inbox`, or correct inbox.schema and inbox.table")
		return
	}
	before := len(d.findings)
	target := migrations.Target{Schema: schema, Table: table, Set: migrations.Inbox}
	// Who may not read the table of migrations needs no inbox's.
	var pending []migrations.Migration
	err := source.Within(ctx, d.conn, pgx.ReadOnly, statementLimit, func(pgx.Tx) (err error) {
		pending, err = target.Pending(ctx, d.conn)
		return err
	})
	if err == nil {
		for _, m := range pending {
			d.add(Warning, subject, fmt.Sprintf("migration %d (%s) is pending", m.Version, m.Name), "run `relay migrate --only inbox`")
		}
	}
	if d.config.Inbox.Retention > 0 {
		d.inboxGrants(ctx, "")
		d.inboxGrants(ctx, "_order")
	}
	if len(d.findings) == before {
		d.add(OK, subject, "has all columns, and its grants suffice", "")
	}
}

// inboxTable returns the table's columns. Where it is missing that is a finding
// only if the file names an inbox.
func (d *database) inboxTable(ctx context.Context, subject, name string) (columns map[string]string, exists bool) {
	schema := d.config.Inbox.Schema
	var schemaExists, usage bool
	if err := d.db.QueryRow(ctx, schemaSQL, schema).Scan(&schemaExists, &usage); err != nil {
		d.fail(subject, err)
		return nil, false
	}
	if schemaExists && usage {
		var err error
		if columns, err = d.columns(ctx, name); err != nil {
			d.fail(subject, err)
			return nil, false
		}
	}
	switch {
	case len(columns) > 0:
		return columns, true
	case !d.config.NamesInbox(): // nobody asked
	case !schemaExists:
		d.add(Warning, subject, fmt.Sprintf("the schema %q does not exist", schema), inboxElsewhere)
	case !usage:
		d.add(Warning, subject, "missing: USAGE on its schema", fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s", pgx.Identifier{schema}.Sanitize(), d.role()))
	default:
		d.add(Warning, subject, "the table does not exist", inboxElsewhere)
	}
	return nil, false
}

// inboxGrants looks at what pruning needs of one of the inbox's tables.
func (d *database) inboxGrants(ctx context.Context, suffix string) {
	name := pgx.Identifier{d.config.Inbox.Schema, d.config.Inbox.Table + suffix}.Sanitize()
	subject := "grants on " + name
	var exists, selects, inserts, updates, deletes, hidden bool
	err := d.db.QueryRow(ctx, besideSQL, name).Scan(&exists, &selects, &inserts, &updates, &deletes)
	if err == nil {
		err = d.db.QueryRow(ctx, rowSecuritySQL, name).Scan(&hidden, new(string))
	}
	if err != nil {
		d.fail(subject, err)
		return
	}
	var missing []string
	if !selects {
		missing = append(missing, "SELECT")
	}
	if !deletes {
		missing = append(missing, "DELETE")
	}
	switch {
	case !exists:
		d.add(Warning, "table "+name, "the table does not exist: `relay prune` fails", "run `relay migrate --only inbox`")
	case len(missing) > 0:
		privileges := strings.Join(missing, ", ")
		d.add(Warning, subject, "missing for `relay prune`: "+privileges,
			fmt.Sprintf("GRANT %s ON %s TO %s, let another role prune, or set inbox.retention: 0", privileges, name, d.role()))
	case hidden:
		d.add(Warning, subject, "row-level security hides rows from this role: hidden ids are never pruned",
			fmt.Sprintf("ALTER ROLE %s BYPASSRLS, or add a policy that lets it see and delete all rows", d.role()))
	}
}
