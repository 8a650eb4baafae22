package operator

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/outbox"
)

func waitingOf(t *testing.T, entries []Entry, m message) int64 {
	t.Helper()
	for _, e := range entries {
		if e.ID == m.id {
			if e.Waiting == nil {
				t.Fatalf("what waits behind %d was not counted", m.id)
			}
			return *e.Waiting
		}
	}
	t.Fatalf("%d is not listed", m.id)
	return 0
}

func TestListParkedCountsWhatWaits(t *testing.T) {
	f := newFixture(t)
	f.insert("orders", key("a")) // below: not held back by it
	a := f.parked("orders", key("a"))
	empty := f.parked("orders", key(""))
	none := f.parked("orders", nil)
	retrying := f.park(f.insert("orders", key("r")), Retrying)
	draining := f.park(f.insert("orders", key("d")), Draining)
	for range 3 {
		f.insert("orders", key("a"))
	}
	f.insert("orders", key(""))
	f.insert("mail", key("a"))
	f.insert("orders", nil)
	f.published("orders", key("a"))
	f.exec(`INSERT INTO outbox (topic, key, available_at) VALUES ('orders', 'a', now() + interval '1 hour'), ('orders', 'a', now() - interval '1 hour')`)
	entries, err := f.ListParked(t.Context(), ListOptions{}, Parked)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 3 || !slices.IsSortedFunc(entries, func(a, b Entry) int { return a.ParkedAt.Compare(*b.ParkedAt) }) {
		t.Fatalf("%+v, want the three parked ones, the oldest first", entries)
	}
	for m, want := range map[message]int64{a: 4, empty: 1, none: 0} {
		if got := waitingOf(t, entries, m); got != want {
			t.Errorf("%d wait behind %d, want %d", got, m.id, want)
		}
	}
	first := entries[slices.IndexFunc(entries, func(e Entry) bool { return e.ID == a.id })]
	if first.Topic != "orders" || *first.Key != "a" || first.MessageID != a.uid || first.State != Parked || first.Attempts != 5 ||
		first.Reason != "message_too_large" || first.Error != "it is too large" || first.ParkedAt == nil || !first.NextRetryAt.After(time.Now()) {
		t.Errorf("listed as %+v", first)
	}
	all, err := f.ListParked(t.Context(), ListOptions{}, Parked, Retrying, Draining)
	if err != nil || len(all) != 5 {
		t.Errorf("%d in all states and error %v, want 5", len(all), err)
	}
	waitingOf(t, all, retrying)
	waitingOf(t, all, draining)
	one, err := f.ListParked(t.Context(), ListOptions{Limit: 1}, Parked)
	if err != nil || len(one) != 1 || one[0].ID != a.id {
		t.Errorf("the oldest is %+v, error %v", one, err)
	}
	other, err := f.ListParked(t.Context(), ListOptions{Topic: key("mail")}, Parked)
	if err != nil || len(other) != 0 {
		t.Errorf("topic mail has %+v, error %v", other, err)
	}
}

func TestWaitingInOtherOrderings(t *testing.T) {
	for ordering, want := range map[source.Ordering]int64{source.OrderNone: 0, source.OrderTotal: 2} {
		f := newFixture(t, func(o *Options) { o.Ordering = ordering })
		m := f.parked("orders", key("a"))
		f.insert("mail", key("b"))
		f.insert("orders", nil)
		entries, err := f.ListParked(t.Context(), ListOptions{}, Parked)
		if err != nil {
			t.Fatal(err)
		}
		if got := waitingOf(t, entries, m); got != want {
			t.Errorf("ordering %s: %d wait, want %d", ordering, got, want)
		}
	}
}

// A list is worth having where the backlog is too long to be counted.
func TestListWithoutCounts(t *testing.T) {
	f := newFixture(t)
	f.parked("orders", key("a"))
	f.lookTimeout = 100 * time.Millisecond
	tx := f.begin()
	f.in(tx, `LOCK TABLE outbox`)
	entries, err := f.ListParked(t.Context(), ListOptions{}, Parked)
	if err != nil || len(entries) != 1 || entries[0].Waiting != nil {
		t.Errorf("%+v, error %v; want one entry without a count", entries, err)
	}
	f.in(tx, `ROLLBACK`)
	entries, err = f.ListParked(t.Context(), ListOptions{}, Parked)
	if err != nil || len(entries) != 1 || entries[0].Waiting == nil {
		t.Errorf("%+v, error %v; want one entry with its count", entries, err)
	}
}

func TestFindParked(t *testing.T) {
	f := newFixture(t)
	a, none := f.parked("orders", key("a")), f.parked("orders", nil)
	empty := f.parked("orders", key(""))
	retrying := f.park(f.insert("orders", key("r")), Retrying)
	draining := f.park(f.insert("orders", key("d")), Draining)
	f.parked("mail", key("a"))
	for name, test := range map[string]struct {
		selection Selection
		want      []message
		missing   string
	}{
		"by key":                   {Selection{Topic: "orders", Key: key("a")}, []message{a}, ""},
		"by empty key":             {Selection{Topic: "orders", Key: key("")}, []message{empty}, ""},
		"by message ids":           {Selection{MessageIDs: []outbox.UUID{none.uid, a.uid}}, []message{a, none}, ""},
		"retrying, by key":         {Selection{Topic: "orders", Key: key("r")}, []message{retrying}, ""},
		"retrying, by message id":  {retrying.selection(), []message{retrying}, ""},
		"draining, by key":         {Selection{Topic: "orders", Key: key("d")}, nil, "this key of topic orders: not parked"},
		"draining, by message id":  {draining.selection(), nil, "message " + draining.uid.String() + ": not parked"},
		"unknown key":              {Selection{Topic: "orders", Key: key("x")}, nil, "this key of topic orders: not parked"},
		"one known and one not":    {Selection{MessageIDs: []outbox.UUID{a.uid, {15: 7}, {15: 9}}}, nil, "message 00000000-0000-0000-0000-000000000007, message 00000000-0000-0000-0000-000000000009: not parked"},
		"an odd key is no pattern": {Selection{Topic: "orders", Key: key("%")}, nil, "not parked"},
	} {
		t.Run(name, func(t *testing.T) {
			entries, err := f.FindParked(t.Context(), test.selection)
			if test.missing != "" {
				if _, ok := errors.AsType[*NotFoundError](err); !ok || !strings.Contains(err.Error(), test.missing) {
					t.Errorf("error %v, want one that says %q", err, test.missing)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got, want []int64
			for _, e := range entries {
				got = append(got, e.ID)
			}
			for _, m := range test.want {
				want = append(want, m.id)
			}
			if !slices.Equal(got, want) {
				t.Errorf("found %v, want %v", got, want)
			}
		})
	}
	if all := f.findParked(Selection{All: true}); len(all) != 4 {
		t.Errorf("all are %d, want the 4 that are parked", len(all))
	}
}

func TestRetryParked(t *testing.T) {
	f := newFixture(t)
	a, b, retrying := f.parked("orders", key("a")), f.parked("orders", nil), f.park(f.insert("orders", key("r")), Retrying)
	other := f.parked("orders", key("other"))
	notified := f.listen("outbox")
	s := Selection{MessageIDs: []outbox.UUID{a.uid, b.uid, retrying.uid}}
	done, err := f.RetryParked(t.Context(), s, f.findParked(s))
	if err != nil || len(done) != 3 {
		t.Fatalf("%+v, error %v", done, err)
	}
	notified()
	f.same("true|parked\ntrue|parked\ntrue|retrying\nfalse|parked", `SELECT next_retry_at <= now(), state FROM outbox_parked ORDER BY id`)
	f.audited("parked retry", a, b, retrying)
	if done, err := f.RetryParked(t.Context(), Selection{All: true}, f.findParked(Selection{All: true})); err != nil || len(done) != 3 {
		t.Errorf("all: %d, error %v; want 3", len(done), err)
	}
	f.audited("parked retry", a, b, other)
}

func TestSkipParked(t *testing.T) {
	f := newFixture(t)
	m := f.row(`INSERT INTO outbox (topic, key, type, payload, content_type, headers, available_at, created_at)
		VALUES ('orders', 'a', 'OrderPlaced', '\x00ff', 'application/x', '{"tenant": "a"}', now() - interval '1 hour', now() - interval '2 hours') RETURNING id, message_id`)
	before := f.text(`SELECT id, message_id, topic, key, type, payload, content_type, headers, available_at, created_at FROM outbox`)
	f.park(m, Parked)
	null := f.parked("orders", nil)
	waits := f.insert("orders", key("a"))
	notified := f.listen("outbox")
	s := Selection{MessageIDs: []outbox.UUID{m.uid, null.uid}}
	done, err := f.SkipParked(t.Context(), s, f.findParked(s))
	if err != nil || len(done) != 2 || !done[0].DeadLetter || !done[1].DeadLetter {
		t.Fatalf("%+v, error %v", done, err)
	}
	notified()
	f.same(before, `SELECT id, message_id, topic, key, type, payload, content_type, headers, available_at, created_at FROM outbox_dead_letters WHERE id = $1`, m.id)
	f.same("5|message_too_large|it is too large|true", `SELECT d.attempts, d.reason, d.error, (d.first_failed_at, d.last_failed_at) = (p.first_failed_at, p.last_failed_at)
		FROM outbox_dead_letters d JOIN outbox_parked p USING (id) WHERE id = $1`, m.id)
	f.same("draining|true\ndraining|true", `SELECT state, next_retry_at <= now() FROM outbox_parked ORDER BY id`)
	f.same(f.text(`SELECT $1::bigint`, waits.id), `SELECT id FROM outbox`)
	for _, d := range f.audited("parked skip", m, null) {
		if d["dead_letter"] != true || d["error"] != "it is too large" || d["attempts"] != 5.0 {
			t.Errorf("audit details %v", d)
		}
	}
}

// A row that somebody cancelled or marked by hand is no dead letter, but its key
// goes on.
func TestSkipOfARowThatIsNotPending(t *testing.T) {
	f := newFixture(t)
	cancelled, marked := f.parked("orders", key("a")), f.parked("orders", key("b"))
	f.exec(`DELETE FROM outbox WHERE id = $1`, cancelled.id)
	f.exec(`UPDATE outbox SET published_at = now() WHERE id = $1`, marked.id)
	done, err := f.SkipParked(t.Context(), Selection{All: true}, f.findParked(Selection{All: true}))
	if err != nil || len(done) != 2 || done[0].DeadLetter || done[1].DeadLetter {
		t.Fatalf("%+v, error %v", done, err)
	}
	f.same("draining\ndraining", `SELECT state FROM outbox_parked`)
	f.same("0|1", `SELECT (SELECT count(*) FROM outbox_dead_letters), (SELECT count(*) FROM outbox)`)
}

// A relay that publishes the message holds its row.
func TestSkipWaitsForARelay(t *testing.T) {
	f := newFixture(t)
	m := f.parked("orders", key("a"))
	entries := f.findParked(m.selection())
	before := f.everything()

	relay := f.begin()
	f.in(relay, `SELECT FROM outbox WHERE id = $1 FOR UPDATE`, m.id)
	f.lockTimeout = 300 * time.Millisecond
	if _, err := f.SkipParked(t.Context(), m.selection(), entries); !errors.Is(err, ErrBusy) {
		t.Errorf("error %v, want ErrBusy", err)
	}
	if after := f.everything(); after != before {
		t.Errorf("something was changed:\n%s\nbefore:\n%s", after, before)
	}

	f.lockTimeout = time.Minute
	ended := make(chan error, 1)
	go func() {
		_, err := f.SkipParked(t.Context(), m.selection(), entries)
		ended <- err
	}()
	f.blocked()
	f.in(relay, `ROLLBACK`) // the broker refused it again
	if err := <-ended; err != nil {
		t.Error(err)
	}
	f.same("1|0", `SELECT (SELECT count(*) FROM outbox_dead_letters), (SELECT count(*) FROM outbox)`)
}

// A relay that succeeds while the operator waits has published the message: it
// must not become a dead letter too.
func TestSkipOfWhatARelayPublishesMeanwhile(t *testing.T) {
	for _, named := range []bool{true, false} {
		f := newFixture(t)
		f.lockTimeout = time.Minute
		m, other := f.parked("orders", key("a")), f.parked("orders", key("b"))
		s := Selection{All: true}
		if named {
			s = Selection{MessageIDs: []outbox.UUID{m.uid, other.uid}}
		}
		entries := f.findParked(s)
		relay := f.begin()
		f.in(relay, `DELETE FROM outbox_parked WHERE id = $1`, m.id)
		f.in(relay, `UPDATE outbox SET published_at = now() WHERE id = $1`, m.id)
		type outcome struct {
			done []Skipped
			err  error
		}
		ended := make(chan outcome, 1)
		go func() {
			done, err := f.SkipParked(t.Context(), s, entries)
			ended <- outcome{done, err}
		}()
		f.blocked()
		f.commit(relay)
		got := <-ended
		if named {
			// It deals with the other one, and says what became of this.
			if got.err != nil || len(got.done) != 1 || got.done[0].ID != other.id {
				t.Errorf("%+v, error %v", got.done, got.err)
			}
			if gone := f.Gone(); len(gone) != 1 || gone[0].ID != m.id || gone[0].What != "was published meanwhile" {
				t.Errorf("gone: %+v", gone)
			}
			f.same("draining", `SELECT state FROM outbox_parked`)
			f.same(fmt.Sprint(other.id), `SELECT id FROM outbox_dead_letters`)
			continue
		}
		if got.err != nil || len(got.done) != 1 || got.done[0].ID != other.id {
			t.Errorf("%+v, error %v; want only %d", got.done, got.err, other.id)
		}
		f.same(f.text(`SELECT $1::bigint`, other.id), `SELECT id FROM outbox_dead_letters`)
	}
}

// Relays and operators may take locks in different orders.
func TestSkipBeginsAnewAfterADeadlock(t *testing.T) {
	f := newFixture(t)
	f.lockTimeout = time.Minute
	m := f.parked("orders", key("a"))
	entries := f.findParked(m.selection())
	f.session(`SET deadlock_timeout = '3s'`)
	relay := f.begin()
	f.in(relay, `SET LOCAL deadlock_timeout = '20s'`) // so that the operator is the one that gives way
	f.in(relay, `SELECT FROM outbox WHERE id = $1 FOR UPDATE`, m.id)
	ended := make(chan error, 1)
	go func() {
		_, err := f.SkipParked(t.Context(), m.selection(), entries)
		ended <- err
	}()
	f.blocked()
	f.in(relay, `UPDATE outbox_parked SET attempts = 6 WHERE id = $1`, m.id)
	f.commit(relay)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	f.same("6", `SELECT attempts FROM outbox_dead_letters`)
}

// session runs a statement in the operator's session.
func (f *fixture) session(sql string) {
	f.t.Helper()
	if _, err := f.conn.Exec(f.t.Context(), sql); err != nil {
		f.t.Fatal(err)
	}
}

func TestSelectionsThatAreNotNamedGoInBatches(t *testing.T) {
	f := newFixture(t)
	f.batchSize = 2
	var all []message
	for range 5 {
		all = append(all, f.parked("orders", nil))
	}
	relay := f.begin()
	f.in(relay, `SELECT FROM outbox WHERE id = $1 FOR UPDATE`, all[3].id)
	f.lockTimeout = 200 * time.Millisecond
	done, err := f.SkipParked(t.Context(), Selection{All: true}, f.findParked(Selection{All: true}))
	if !errors.Is(err, ErrBusy) || len(done) != 2 {
		t.Errorf("%d done, error %v; want the first 2 and ErrBusy", len(done), err)
	}
	f.in(relay, `ROLLBACK`)
	if done, err = f.SkipParked(t.Context(), Selection{All: true}, f.findParked(Selection{All: true})); err != nil || len(done) != 3 {
		t.Errorf("%d done, error %v; want the other 3", len(done), err)
	}
	f.same("5", `SELECT count(*) FROM outbox_dead_letters`)
	f.same("5", `SELECT count(*) FROM outbox_audit`)
}

// TestSkipOfPayloadJSON: the dead letter has what the row would have sent, also
// of a table that has not been migrated.
func TestSkipOfPayloadJSON(t *testing.T) {
	const written = `{"path":"C:\\temp", "quote":"\""}`
	f := newFixture(t)
	f.exec(`DROP TRIGGER outbox_payload_bytes ON outbox`)
	f.park(f.row(`INSERT INTO outbox (topic, key, payload_json) VALUES ('orders', 'a', $1) RETURNING id, message_id`, written), Parked)
	all := Selection{All: true}
	if _, err := f.SkipParked(t.Context(), all, f.findParked(all)); err != nil {
		t.Fatal(err)
	}
	f.same(written, `SELECT convert_from(payload, 'UTF8') FROM outbox_dead_letters WHERE key = 'a'`)

	f.exec(`ALTER TABLE outbox DROP COLUMN payload_json`)
	m := f.parked("orders", key("b"))
	if _, err := f.SkipParked(t.Context(), m.selection(), f.findParked(m.selection())); err != nil {
		t.Fatal(err)
	}
	f.same("payload", `SELECT convert_from(payload, 'UTF8') FROM outbox_dead_letters WHERE key = 'b'`)
}
