package migrations_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/migrations"
)

var publicInbox = migrations.Target{Schema: "public", Table: "inbox", Set: migrations.Inbox}

func TestInboxAlone(t *testing.T) {
	db := pgtest.New(t)
	conn := connect(t, db.URL)
	all, err := publicInbox.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	if got := apply(t, publicInbox, conn); len(got) != len(all) {
		t.Errorf("applied %v of %d", got, len(all))
	}
	if got := apply(t, publicInbox, conn); got != nil {
		t.Errorf("applied %v the second time", got)
	}
	if n := db.Int(t, `SELECT count(*) FROM pg_class WHERE relname LIKE '%outbox%'`); n != 0 {
		t.Errorf("the inbox made %d relations of an outbox", n)
	}
	// An outbox may come later, and records its versions elsewhere.
	if got := apply(t, public, conn); fmt.Sprint(got) != fmt.Sprint(versions(t)) {
		t.Errorf("applied %v of the outbox", got)
	}
	if n := db.Int(t, `SELECT count(*) FROM inbox_migrations`); n != int64(len(all)) {
		t.Errorf("%d migrations of the inbox are recorded", n)
	}
}

func TestInboxPrintLeavesWhatApplyLeaves(t *testing.T) {
	for _, target := range []migrations.Target{publicInbox, {Schema: `Odd "s'chema"`, Table: "in$sql$box'\\ \"1\"\n;", Set: migrations.Inbox}} {
		t.Run(target.Table, func(t *testing.T) {
			applied, printed := pgtest.New(t), pgtest.New(t)
			apply(t, target, connect(t, applied.URL))
			var script bytes.Buffer
			if err := target.Print(&script); err != nil {
				t.Fatal(err)
			}
			conn := connect(t, printed.URL)
			if _, err := conn.PgConn().Exec(t.Context(), script.String()).ReadAll(); err != nil {
				t.Fatalf("%v in\n%s", err, script.String())
			}
			want, got := catalog(t, applied, target.Schema), catalog(t, printed, target.Schema)
			if got != want || !strings.Contains(want, "function") {
				t.Errorf("printed:\n%s\n\napplied:\n%s", got, want)
			}
			if got := apply(t, target, conn); got != nil {
				t.Errorf("after the script, Apply applied %v", got)
			}
		})
	}
}

func TestInboxOfSomebodyElseIsExplained(t *testing.T) {
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE inbox (id int)`)
	expectError(t, publicInbox, connect(t, db.URL), `"inbox" already exists`, "inbox.schema or inbox.table")
}

func TestClaimFunction(t *testing.T) {
	db := pgtest.New(t)
	apply(t, publicInbox, connect(t, db.URL))
	claim := func(sql string) bool {
		t.Helper()
		var claimed bool
		if err := db.Pool.QueryRow(t.Context(), "SELECT "+sql).Scan(&claimed); err != nil {
			t.Fatal(err)
		}
		return claimed
	}
	const id = `'0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5f'`
	for _, test := range []struct {
		sql  string
		want bool
	}{
		{`inbox_claim('mail', ` + id + `)`, true},
		{`inbox_claim('mail', ` + id + `)`, false},
		{`inbox_claim('billing', ` + id + `, 'orders', 3, 42)`, true},
		{`inbox_claim(consumer => 'stock', message_id => ` + id + `, source => 'queue')`, true},
	} {
		if got := claim(test.sql); got != test.want {
			t.Errorf("%s is %v", test.sql, got)
		}
	}
	if n := db.Int(t, `SELECT count(*) FROM inbox WHERE (consumer, source, source_partition, source_offset) = ('billing', 'orders', 3, 42) AND received_at = processed_at AND now() - processed_at < interval '1 hour'`); n != 1 {
		t.Error("the source or the times are not recorded")
	}
	for _, sql := range []string{`inbox_claim('mail', NULL)`, `inbox_claim(NULL, ` + id + `)`, `inbox_claim('', ` + id + `)`} {
		if _, err := db.Pool.Exec(t.Context(), "SELECT "+sql); err == nil {
			t.Errorf("%s was accepted", sql)
		}
	}
}
