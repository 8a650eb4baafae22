package operator

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/outbox"
)

// everyCommand does what all commands do, once, on an outbox with one parked
// message, three dead letters and a published row.
func everyCommand(t *testing.T, o *Operator) {
	t.Helper()
	try := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	all := Selection{All: true}
	_, err := o.ListParked(t.Context(), ListOptions{}, Parked)
	try("parked list", err)
	entries, err := o.FindParked(t.Context(), all)
	try("find parked", err)
	if len(entries) != 1 {
		t.Fatalf("%d are parked", len(entries))
	}
	_, err = o.RetryParked(t.Context(), all, entries)
	try("parked retry", err)
	_, err = o.SkipParked(t.Context(), all, entries)
	try("parked skip", err)
	try("dead list", o.ListDead(t.Context(), ListOptions{}, func(DeadLetter) error { return nil }))
	letters, err := o.FindDead(t.Context(), all)
	try("find dead", err)
	if len(letters) != 4 {
		t.Fatalf("%d dead letters", len(letters))
	}
	try("dead show", o.ShowDead(t.Context(), letters, func(DeadMessage) error { return nil }))
	_, _, err = o.Overtaken(t.Context(), letters)
	try("overtaken", err)
	back := Selection{MessageIDs: []outbox.UUID{letters[0].MessageID, letters[3].MessageID}}
	_, err = o.RetryDead(t.Context(), back, []Letter{letters[0], letters[3]})
	try("dead retry", err)
	_, err = o.DiscardDead(t.Context(), all, letters[1:3])
	try("dead discard", err)
	_, err = o.CountReplay(t.Context(), Filter{})
	try("replay --dry-run", err)
	rows, err := o.Replay(t.Context(), Filter{}, 10)
	try("replay", err)
	if len(rows) != 1 {
		t.Errorf("%d were replayed", len(rows))
	}
	failures, err := ReadFailures(t.Context(), o.conn, o.options.Schema, o.options.Table)
	try("status", err)
	if len(failures) != 0 {
		t.Errorf("what is left: %+v", failures)
	}
}

// fill makes what everyCommand works on.
func fill(t *testing.T, db *pgtest.Database, schema, table string) {
	t.Helper()
	s := newStatements(schema, table)
	db.Exec(t, s.expand(`
INSERT INTO {outbox} (id, topic, key, published_at) VALUES (1, 't', 'k', NULL), (2, 't', 'k', now());
INSERT INTO {parked} (id, message_id, topic, key, state, attempts, reason, error, parked_at)
SELECT id, message_id, topic, key, 'parked', 1, 'r', 'e', now() FROM {outbox} WHERE id = 1;
INSERT INTO {dead} (id, message_id, topic, key, type, content_type, headers, created_at, attempts, reason, error, first_failed_at, last_failed_at)
SELECT n, gen_random_uuid(), 't', CASE n WHEN 10 THEN 'k' END, '', '', '{}', now(), 1, 'r', 'e', now(), now() FROM generate_series(10, 12) n`))
}

func TestOddNames(t *testing.T) {
	db := pgtest.New(t)
	const schema, table = `Odd "schema" {dead}`, `out'box $1 {outbox}`
	db.Migrate(t, schema, table)
	fill(t, db, schema, table)
	everyCommand(t, newOperator(t, db.URL, func(o *Options) { o.Schema, o.Table = schema, table }))
}

// Through a pooler that gives every transaction another server session there
// are no prepared statements to come back to.
func TestNothingIsPrepared(t *testing.T) {
	db := pgtest.NewOutbox(t)
	fill(t, db, "public", "outbox")
	o := newOperator(t, db.URL)
	everyCommand(t, o)
	var prepared []string
	rows, err := o.conn.Query(t.Context(), `SELECT statement FROM pg_prepared_statements`, exec)
	if err == nil {
		prepared, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil || len(prepared) > 0 {
		t.Errorf("prepared are %v, error %v", prepared, err)
	}
}

func TestMissingTables(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `DROP TABLE outbox_parked, outbox_dead_letters, outbox_audit`)
	o := newOperator(t, db.URL)
	_, parked := o.ListParked(t.Context(), ListOptions{}, Parked)
	dead := o.ListDead(t.Context(), ListOptions{}, nil)
	for _, err := range []error{parked, dead} {
		if err == nil || !strings.Contains(err.Error(), "does not exist") || !strings.Contains(err.Error(), "relay migrate") {
			t.Errorf("error %v; want one that names the remedy", err)
		}
	}
}

func TestFailuresByTopic(t *testing.T) {
	f := newFixture(t)
	f.parked("orders", key("a"))
	f.parked("orders", nil)
	f.park(f.insert("orders", key("r")), Retrying)
	f.park(f.insert("idle", key("d")), Draining)
	f.dead("mail", nil)
	f.dead("orders", key("b"))
	f.insert("fine", nil)
	failures, err := ReadFailures(t.Context(), f.conn, "public", "outbox")
	if err != nil {
		t.Fatal(err)
	}
	if want := []Failures{{"mail", 0, 1}, {"orders", 2, 1}}; len(failures) != 2 || failures[0] != want[0] || failures[1] != want[1] {
		t.Errorf("%+v, want %+v", failures, want)
	}
}

// What a role forbids itself is no reason to fail, or to wait for ever.
func TestSettingsOfTheRole(t *testing.T) {
	f := newFixture(t)
	fill(t, f.db, "public", "outbox")
	f.exec(`DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || ' SET default_transaction_isolation = serializable'; END $$`)
	f.exec(`DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || ' SET default_transaction_read_only = on'; END $$`)
	f.exec(`DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || ' SET synchronous_commit = off'; END $$`)
	f.exec(`DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || ' SET lock_timeout = 1'; END $$`)
	o := newOperator(t, f.db.URL)
	everyCommand(t, o)
	err := o.write(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		var isolation, readOnly, synchronous, lock, idle string
		err := tx.QueryRow(ctx, `SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'), current_setting('synchronous_commit'),
			current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout')`).Scan(&isolation, &readOnly, &synchronous, &lock, &idle)
		if got, want := strings.Join([]string{isolation, readOnly, synchronous, lock, idle}, ", "), "read committed, off, local, 10s, 30s"; got != want {
			t.Errorf("settings %s, want %s", got, want)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
