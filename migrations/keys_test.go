package migrations_test

import (
	"testing"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/migrations"
)

// Under a publication FOR ALL TABLES, which Debezium makes unless told otherwise,
// rows of a table without a primary key can be neither updated nor deleted.
func TestEveryTableHasAPrimaryKey(t *testing.T) {
	for _, set := range []migrations.Set{migrations.Outbox, migrations.Inbox} {
		db := pgtest.New(t)
		apply(t, migrations.Target{Schema: "public", Table: string(set), Set: set}, connect(t, db.URL))
		if n := db.Int(t, `SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace`); n < 3 {
			t.Errorf("the %s has %d tables", set, n)
		}
		rows, err := db.Pool.Query(t.Context(), `
SELECT c.relname FROM pg_class c
WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace
  AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)`)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var table string
			if err := rows.Scan(&table); err != nil {
				t.Fatal(err)
			}
			t.Errorf("table %s has no primary key", table)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}
}
