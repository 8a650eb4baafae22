package inspect

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// besideSQL asks what the role may do with a table beside the outbox.
const besideSQL = `SELECT to_regclass($1) IS NOT NULL, coalesce(has_table_privilege(to_regclass($1), 'SELECT'), false),
    coalesce(has_table_privilege(to_regclass($1), 'INSERT'), false), coalesce(has_table_privilege(to_regclass($1), 'UPDATE'), false),
    coalesce(has_table_privilege(to_regclass($1), 'DELETE'), false)`

// beside are the tables that the relay keeps failures in, what it does with
// them, and the indexes that its claims use.
var beside = []struct {
	suffix     string
	privileges []string
	indexes    []string
	columns    []string
}{
	{
		"_parked",
		[]string{"SELECT", "INSERT", "UPDATE", "DELETE"},
		[]string{"_parked_key_idx", "_parked_retry_idx"},
		[]string{"id", "message_id", "topic", "key", "state", "attempts", "reason", "error", "first_failed_at", "last_failed_at", "parked_at", "next_retry_at"},
	},
	{
		"_dead_letters",
		[]string{"SELECT", "INSERT", "UPDATE"},
		nil,
		[]string{
			"id", "message_id", "topic", "key", "type", "payload", "payload_json", "content_type", "headers", "available_at", "created_at",
			"attempts", "reason", "error", "first_failed_at", "last_failed_at", "dead_at",
		},
	},
}

// failures looks at the tables of parked keys and dead letters.
func (d *database) failures(ctx context.Context) {
	for _, table := range beside {
		name := pgx.Identifier{d.config.Outbox.Schema, d.config.Outbox.Table + table.suffix}.Sanitize()
		subject := "table " + name
		var exists bool
		granted := make([]bool, 4)
		if err := d.db.QueryRow(ctx, besideSQL, name).Scan(&exists, &granted[0], &granted[1], &granted[2], &granted[3]); err != nil {
			d.fail(subject, err)
			continue
		}
		if !exists {
			d.add(Error, subject, "the table does not exist", "run `relay migrate`")
			continue
		}
		before := len(d.findings)
		var missing []string
		for i, privilege := range []string{"SELECT", "INSERT", "UPDATE", "DELETE"} {
			if slices.Contains(table.privileges, privilege) && !granted[i] {
				missing = append(missing, privilege)
			}
		}
		if len(missing) > 0 {
			d.missing("grants on "+name, strings.Join(missing, ", "), name)
		}
		d.indexes(ctx, subject, name, table.indexes)
		if more, err := d.demanding(ctx, name, table.columns); err != nil {
			d.fail(subject, err)
		} else if len(more) > 0 {
			d.add(Error, subject, fmt.Sprintf("what the broker refuses cannot be recorded: column %s is not the relay's, is NOT NULL and has no default", more[0]),
				fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s SET DEFAULT a value, or DROP NOT NULL", name, pgx.Identifier{more[0]}.Sanitize()))
		}
		if len(d.findings) == before {
			d.add(OK, subject, "present; grants sufficient", "")
		}
	}
}
