package inspect_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/inspect"
	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/migrations"
)

// naming is the configuration of a file that has a section inbox.
func naming(t *testing.T, url, section string) *config.Config {
	t.Helper()
	file := fmt.Sprintf("database: {url: %q}\nsinks: {main: {kafka: {brokers: [\"localhost:9092\"]}}}\ninbox: %s\n", url, section)
	c, err := config.Parse("relay.yaml", []byte(file), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newInbox(t *testing.T, db *pgtest.Database) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := (migrations.Target{Schema: "public", Table: "inbox", Set: migrations.Inbox}).Apply(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
}

// about returns the findings that concern an inbox.
func about(findings []inspect.Finding) (list []inspect.Finding) {
	for _, f := range findings {
		if strings.Contains(f.Subject, `"inbox`) {
			list = append(list, f)
		}
	}
	return list
}

const soundInbox = `table "public"."inbox": has all columns, and its grants suffice -> `

func TestInbox(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		sql     string // after the inbox was made
		section string // of the file
		ok      []string
		warning []string
	}{
		{name: "sound", section: "{}", ok: []string{soundInbox}},
		{name: "not made", sql: `DROP TABLE inbox, inbox_order, inbox_parked`, section: "{}", warning: []string{
			`table "public"."inbox": the table does not exist -> …relay migrate --only inbox…leave section inbox out…`,
		}},
		{name: "in a schema that is not there", section: "{schema: events}", warning: []string{
			`table "events"."inbox": the schema "events" does not exist -> …`,
		}},
		{name: "columns", sql: `ALTER TABLE inbox DROP COLUMN processed_at, DROP COLUMN source`, section: "{}", warning: []string{
			`table "public"."inbox": no inbox…missing: processed_at, source -> …relay migrate --only inbox…`,
		}},
		{name: "older", sql: `DROP TABLE inbox_parked; DELETE FROM inbox_migrations WHERE version = 2`, section: "{}", warning: []string{
			`table "public"."inbox": migration 2 (parked) is pending -> run …relay migrate --only inbox…`,
		}},
		{name: "no table for the order", sql: `DROP TABLE inbox_order`, section: "{}", warning: []string{
			`table "public"."inbox_order": the table does not exist… -> run …`,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewOutbox(t)
			newInbox(t, db)
			if test.sql != "" {
				db.Exec(t, test.sql)
			}
			findings := look(t, naming(t, db.URL, test.section))
			expect(t, findings, inspect.Error)
			expect(t, about(findings), inspect.Warning, test.warning...)
			expect(t, about(findings), inspect.OK, test.ok...)
		})
	}
}

// TestInboxUnnamed looks at an inbox that the file does not name, and at no
// table that merely has its name.
func TestInboxUnnamed(t *testing.T) {
	t.Parallel()
	db := pgtest.NewOutbox(t)
	if found := about(look(t, settings(t, db.URL, ""))); len(found) != 0 {
		t.Errorf("without an inbox: %+v", found)
	}
	db.Exec(t, `CREATE TABLE inbox (id int)`)
	if found := about(look(t, settings(t, db.URL, ""))); len(found) != 0 {
		t.Errorf("with another table inbox: %+v", found)
	}
	db.Exec(t, `DROP TABLE inbox`)
	newInbox(t, db)
	expect(t, about(look(t, settings(t, db.URL, ""))), inspect.OK, soundInbox)
}

// TestInboxGrants takes from the relay's role what pruning needs; without a
// retention nothing is pruned.
func TestInboxGrants(t *testing.T) {
	t.Parallel()
	db := pgtest.NewOutbox(t)
	newInbox(t, db)
	role := newRole(t, db)
	db.Exec(t, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO "+role, "GRANT DELETE ON inbox_order TO "+role)
	c := settings(t, db.URL, role)
	expect(t, about(look(t, c)), inspect.Warning, `grants on "public"."inbox": missing for …relay prune…: DELETE -> GRANT DELETE ON "public"."inbox" TO "`+role+`"…`)
	c.Inbox.Retention = 0
	expect(t, about(look(t, c)), inspect.Warning)
	c.Inbox.Retention = config.Default().Inbox.Retention
	db.Exec(t, "GRANT DELETE ON inbox TO "+role)
	expect(t, about(look(t, c)), inspect.Warning)
	db.Exec(t, "ALTER TABLE inbox ENABLE ROW LEVEL SECURITY")
	expect(t, about(look(t, c)), inspect.Warning, `grants on "public"."inbox": row-level security hides rows…`)
}
