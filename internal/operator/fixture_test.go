package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/outbox"
)

// fixture is an outbox with failures, and an operator.
type fixture struct {
	*Operator
	db *pgtest.Database
	t  *testing.T
}

func newFixture(t *testing.T, change ...func(*Options)) *fixture {
	t.Helper()
	db := pgtest.NewOutbox(t)
	return &fixture{newOperator(t, db.URL, change...), db, t}
}

func newOperator(t *testing.T, url string, change ...func(*Options)) *Operator {
	t.Helper()
	options := Options{
		Schema: "public", Table: "outbox", Ordering: source.OrderKey, OnPublished: source.Mark,
		Retention: 24 * time.Hour, User: "alice@desk",
	}
	for _, f := range change {
		f(&options)
	}
	return New(open(t, url), options)
}

func open(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	settings, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	settings.DefaultQueryExecMode = exec // as config.Database makes it
	conn, err := pgx.ConnectConfig(t.Context(), settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// message is a row of the outbox or a dead letter.
type message struct {
	id  int64
	uid outbox.UUID
}

func (m message) selection() Selection { return Selection{MessageIDs: []outbox.UUID{m.uid}} }

func key(k string) *string { return &k }

// insert makes a pending row; a nil key is null.
func (f *fixture) insert(topic string, key *string) message {
	f.t.Helper()
	return f.row(`INSERT INTO outbox (topic, key, type, payload, headers) VALUES ($1, $2, 'Happened', 'payload', '{"tenant": "a"}') RETURNING id, message_id`, topic, key)
}

// published makes a row that was published a minute ago.
func (f *fixture) published(topic string, key *string) message {
	f.t.Helper()
	return f.row(`INSERT INTO outbox (topic, key, published_at) VALUES ($1, $2, now() - interval '1 minute') RETURNING id, message_id`, topic, key)
}

// dead makes a dead letter that has the next id.
func (f *fixture) dead(topic string, key *string) message {
	f.t.Helper()
	m := f.insert(topic, key)
	f.exec(`WITH gone AS (DELETE FROM outbox WHERE id = $1 RETURNING *)
		INSERT INTO outbox_dead_letters (id, message_id, topic, key, type, payload, content_type, headers, available_at, created_at,
			attempts, reason, error, first_failed_at, last_failed_at)
		SELECT id, message_id, topic, key, type, payload, content_type, headers, available_at, created_at,
			5, 'message_too_large', 'it is too large', now() - interval '1 minute', now() FROM gone`, m.id)
	return m
}

// park makes the entry of a row.
func (f *fixture) park(m message, state string) message {
	f.t.Helper()
	f.exec(`INSERT INTO outbox_parked (id, message_id, topic, key, state, attempts, reason, error, parked_at, next_retry_at)
		SELECT id, message_id, topic, key, $2, 5, 'message_too_large', 'it is too large',
			CASE $2::text WHEN 'retrying' THEN NULL ELSE now() END, now() + interval '30 seconds'
		FROM outbox WHERE id = $1`, m.id, state)
	return m
}

// parked is a pending row with its entry.
func (f *fixture) parked(topic string, key *string) message {
	f.t.Helper()
	return f.park(f.insert(topic, key), Parked)
}

func (f *fixture) row(sql string, arguments ...any) (m message) {
	f.t.Helper()
	if err := f.db.Pool.QueryRow(f.t.Context(), sql, arguments...).Scan(&m.id, (*[16]byte)(&m.uid)); err != nil {
		f.t.Fatal(err)
	}
	return m
}

func (f *fixture) exec(sql string, arguments ...any) {
	f.t.Helper()
	if _, err := f.db.Pool.Exec(f.t.Context(), sql, arguments...); err != nil {
		f.t.Fatal(err)
	}
}

// text is what a query yields, a row a line, its columns separated by |.
func (f *fixture) text(sql string, arguments ...any) string {
	f.t.Helper()
	rows, err := f.db.Pool.Query(f.t.Context(), sql, arguments...)
	if err != nil {
		f.t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		values, err := row.Values()
		var cells []string
		for _, value := range values {
			cells = append(cells, fmt.Sprint(value))
		}
		return strings.Join(cells, "|"), err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// same checks that a query yields this text.
func (f *fixture) same(want, sql string, arguments ...any) {
	f.t.Helper()
	if got := f.text(sql, arguments...); got != want {
		f.t.Errorf("%s\nyields %q\nwant   %q", sql, got, want)
	}
}

// everything is the contents of all tables, to see that nothing was changed.
func (f *fixture) everything() string {
	f.t.Helper()
	var all []string
	for _, table := range []string{"outbox", "outbox_parked", "outbox_dead_letters", "outbox_audit"} {
		all = append(all, f.text(`SELECT t::text FROM `+table+` t ORDER BY 1`))
	}
	return strings.Join(all, "\n--\n")
}

// entries are id, state and attempts of the parked table.
func (f *fixture) entries() string {
	f.t.Helper()
	return f.text(`SELECT id, state, attempts FROM outbox_parked ORDER BY id`)
}

// listen returns a function that checks that notifications came since.
func (f *fixture) listen(channel string) func() {
	f.t.Helper()
	conn := open(f.t, f.db.URL)
	if _, err := conn.Exec(f.t.Context(), "LISTEN "+pgx.Identifier{channel}.Sanitize()); err != nil {
		f.t.Fatal(err)
	}
	return func() {
		f.t.Helper()
		ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
		defer cancel()
		if _, err := conn.WaitForNotification(ctx); err != nil {
			f.t.Errorf("no relay is notified: %v", err)
		}
	}
}

// audited checks the newest records of the audit: one for each message.
func (f *fixture) audited(action string, messages ...message) []map[string]any {
	f.t.Helper()
	rows, err := f.db.Pool.Query(f.t.Context(), `SELECT action, id, message_id::text, os_user, db_user, details FROM outbox_audit ORDER BY audit_id DESC LIMIT $1`, len(messages))
	if err != nil {
		f.t.Fatal(err)
	}
	var details []map[string]any
	var got []string
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (struct{}, error) {
		var did, uid, osUser, dbUser string
		var id int64
		var text []byte
		if err := row.Scan(&did, &id, &uid, &osUser, &dbUser, &text); err != nil {
			return struct{}{}, err
		}
		if did != action || osUser != "alice@desk" || dbUser != f.conn.Config().User {
			f.t.Errorf("audit: %s by %s, %s; want %s by alice@desk, %s", did, osUser, dbUser, action, f.conn.Config().User)
		}
		got = append(got, fmt.Sprint(id, " ", uid))
		var d map[string]any
		err := json.Unmarshal(text, &d)
		details = append(details, d)
		return struct{}{}, err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	var want []string
	for _, m := range messages {
		want = append(want, fmt.Sprint(m.id, " ", m.uid))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		f.t.Errorf("audit of %s has %v, want %v", action, got, want)
	}
	return details
}

// findParked finds and fails the test when that fails.
func (f *fixture) findParked(s Selection) []Entry {
	f.t.Helper()
	entries, err := f.FindParked(f.t.Context(), s)
	if err != nil {
		f.t.Fatal(err)
	}
	return entries
}

func (f *fixture) findDead(s Selection) []Letter {
	f.t.Helper()
	letters, err := f.FindDead(f.t.Context(), s)
	if err != nil {
		f.t.Fatal(err)
	}
	return letters
}

// blocked waits until the operator's session waits for a lock.
func (f *fixture) blocked() {
	f.t.Helper()
	pid := f.conn.PgConn().PID()
	deadline := time.Now().Add(30 * time.Second)
	for f.text(`SELECT count(*) > 0 FROM pg_locks WHERE pid = $1 AND NOT granted`, int32(pid)) != "true" { //nolint:gosec // a process id
		if time.Now().After(deadline) {
			f.t.Fatal("the operator does not wait for a lock")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// begin begins a transaction as a relay has it.
func (f *fixture) begin() pgx.Tx {
	f.t.Helper()
	tx, err := f.db.Pool.Begin(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

func (f *fixture) in(tx pgx.Tx, sql string, arguments ...any) {
	f.t.Helper()
	if _, err := tx.Exec(f.t.Context(), sql, arguments...); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) commit(tx pgx.Tx) {
	f.t.Helper()
	if err := tx.Commit(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}
