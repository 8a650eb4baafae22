package migrations_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/internal/pgtest"
)

// What a consumer knew of the order before the migration it knows after it, also
// where the publication has been there since before.
func TestOrderSurvivesItsPrimaryKey(t *testing.T) {
	db := pgtest.New(t)
	conn := connect(t, db.URL)
	var script bytes.Buffer
	if err := publicInbox.Print(&script); err != nil {
		t.Fatal(err)
	}
	sql, _, found := strings.Cut(script.String(), "-- Outbox Relay: migration 3 ")
	if !found {
		t.Fatal("there is no migration 3")
	}
	if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatal(err)
	}
	const raise = `INSERT INTO inbox_order AS o (consumer, topic, key, sequence) SELECT 'c', 't', convert_to('k' || n, 'UTF8'), n FROM generate_series(1, 1000) n
		ON CONFLICT (consumer, topic, sha256(key)) DO UPDATE SET previous = o.sequence, sequence = greatest(o.sequence, excluded.sequence)`
	db.Exec(t, raise, `CREATE PUBLICATION everything FOR ALL TABLES`)
	if got := apply(t, publicInbox, conn); len(got) == 0 || got[0] != 3 {
		t.Fatalf("applied %v", got)
	}
	db.Exec(t, raise)
	if n := db.Int(t, `SELECT count(*) FROM inbox_order WHERE previous = sequence`); n != 1000 {
		t.Errorf("%d of 1000 keys kept their sequence", n)
	}
	if n := db.Int(t, `SELECT count(*) FROM inbox_order`); n != 1000 {
		t.Errorf("%d rows, want 1000", n)
	}
}
