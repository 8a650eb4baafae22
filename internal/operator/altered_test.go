package operator

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// backAsItWas puts the letter back and checks that it is as it was.
func (f *fixture) backAsItWas(m message) {
	f.t.Helper()
	if _, err := f.RetryDead(f.t.Context(), m.selection(), f.findDead(m.selection())); err != nil {
		f.t.Error(err)
	}
	f.same(fmt.Sprintf("%d|%s|orders", m.id, m.uid), `SELECT id, message_id::text, topic FROM outbox WHERE id = $1`, m.id)
	f.same("0", `SELECT count(*) FROM outbox_dead_letters`)
}

func TestDeadLettersGoBackIntoAnAlteredTable(t *testing.T) {
	for what, alter := range map[string]string{
		"identity always":   `ALTER TABLE outbox ALTER COLUMN id SET GENERATED ALWAYS`,
		"no identity":       `ALTER TABLE outbox ALTER COLUMN id DROP IDENTITY`,
		"further columns":   `ALTER TABLE outbox ADD COLUMN tenant text NOT NULL DEFAULT 'none', ADD COLUMN size bigint GENERATED ALWAYS AS (length(payload)) STORED`,
		"unique message id": `CREATE UNIQUE INDEX ON outbox (message_id)`,
		"partitions": `ALTER TABLE outbox RENAME TO plain; CREATE TABLE outbox (LIKE plain INCLUDING ALL EXCLUDING INDEXES) PARTITION BY RANGE (created_at);
			ALTER TABLE outbox ADD PRIMARY KEY (id, created_at); CREATE TABLE outbox_all PARTITION OF outbox DEFAULT; DROP TABLE plain`,
	} {
		t.Run(what, func(t *testing.T) {
			f := newFixture(t)
			m := f.dead("orders", key("a"))
			f.db.Exec(t, alter)
			f.backAsItWas(m)
			if what == "no identity" {
				return
			}
			f.exec(`DELETE FROM outbox_parked`)
			f.park(m, Parked)
			if done, err := f.SkipParked(t.Context(), m.selection(), f.findParked(m.selection())); err != nil || !done[0].DeadLetter {
				t.Errorf("skipped %+v, error %v", done, err)
			}
			f.exec(`DELETE FROM outbox_parked`)
			f.backAsItWas(m)
			f.exec(`UPDATE outbox SET published_at = now()`)
			if rows, err := f.Replay(t.Context(), Filter{Topic: key("orders")}, 10); err != nil || len(rows) != 1 {
				t.Errorf("replayed %v, error %v", rows, err)
			}
		})
	}
}

func TestWhatKeepsADeadLetterOutIsNamed(t *testing.T) {
	for alter, says := range map[string]string{
		`ALTER TABLE outbox ADD COLUMN "Tenant" text NOT NULL`:                                            `ALTER TABLE "public"."outbox" ALTER COLUMN "Tenant" SET DEFAULT`,
		`ALTER TABLE outbox ADD CONSTRAINT few CHECK (topic <> 'orders')`:                                 `"few"`,
		`CREATE RULE none AS ON INSERT TO outbox DO INSTEAD NOTHING`:                                      "RETURNING",
		`CREATE UNIQUE INDEX ON outbox (type); INSERT INTO outbox (topic, type) VALUES ('x', 'Happened')`: "unique index",
		`CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
			CREATE TRIGGER lose BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION lose()`: "a trigger",
		`INSERT INTO outbox (id, topic) SELECT id, 'other' FROM outbox_dead_letters`: "another row with its id",
	} {
		f := newFixture(t)
		m := f.dead("orders", key("a"))
		f.db.Exec(t, alter)
		before := f.everything()
		if _, err := f.RetryDead(t.Context(), m.selection(), f.findDead(m.selection())); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error %v, want one that says %q", alter, err, says)
		}
		if after := f.everything(); after != before {
			t.Errorf("%s: something was changed", alter)
		}
	}
	f := newFixture(t)
	m := f.parked("orders", key("a"))
	f.db.Exec(t, `CREATE TABLE shipments (outbox_id bigint REFERENCES outbox); INSERT INTO shipments SELECT id FROM outbox`)
	if _, err := f.SkipParked(t.Context(), m.selection(), f.findParked(m.selection())); err == nil || !strings.Contains(err.Error(), "ON DELETE CASCADE") {
		t.Errorf("error %v, want one about the foreign key", err)
	}
}

// Drivers write their zero time as minus infinity.
func TestInfiniteTimesOfDeadLetters(t *testing.T) {
	for _, at := range []string{"-infinity", "infinity", "4713-01-01 00:00:00+00 BC", "294276-01-01 00:00:00+00"} {
		f := newFixture(t)
		a, b := f.dead("orders", key("a")), f.dead("orders", key("b"))
		f.exec(`UPDATE outbox_dead_letters SET created_at = $1::text::timestamptz, available_at = $1::text::timestamptz`, at)
		letters := f.findDead(Selection{All: true})
		if err := f.ShowDead(t.Context(), letters, func(DeadMessage) error { return nil }); err != nil {
			t.Error(err)
		}
		if _, _, err := f.Overtaken(t.Context(), letters); err != nil {
			t.Error(err)
		}
		if done, err := f.RetryDead(t.Context(), a.selection(), f.findDead(a.selection())); err != nil || len(done) != 1 || done[0].InOrder != nil {
			t.Errorf("%+v, error %v; want that the order cannot be known", done, err)
		}
		if done, err := f.DiscardDead(t.Context(), b.selection(), f.findDead(b.selection())); err != nil || len(done) != 1 {
			t.Errorf("%+v, error %v", done, err)
		}
		f.same("true|true", `SELECT created_at = $1::text::timestamptz, available_at = $1::text::timestamptz FROM outbox`, at)
		f.exec(`UPDATE outbox SET published_at = now()`)
		everything := Filter{Topic: key("orders")}
		if counts, err := f.CountReplay(t.Context(), everything); err != nil || len(counts) != 1 {
			t.Errorf("%v, error %v", counts, err)
		}
		if rows, err := f.Replay(t.Context(), everything, 10); err != nil || len(rows) != 1 {
			t.Errorf("%v, error %v", rows, err)
		}
	}
}

// While somebody is asked, the server may end the connection.
func TestConnectionThatTheServerEnded(t *testing.T) {
	f := newFixture(t)
	m := f.parked("orders", key("a"))
	entries := f.findParked(m.selection())
	for range 2 {
		f.exec(`SELECT pg_terminate_backend($1)`, int32(f.conn.PgConn().PID())) //nolint:gosec // a process id
		f.ended(f.conn.PgConn().PID())
		if done, err := f.RetryParked(t.Context(), m.selection(), entries); err != nil || len(done) != 1 {
			t.Errorf("%v, error %v", done, err)
		}
	}
	if err := f.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := newOperator(t, f.db.URL).FindParked(t.Context(), m.selection()); err != nil {
		t.Error(err)
	}
}

// ended waits until the server process has ended.
func (f *fixture) ended(pid uint32) {
	f.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for f.text(`SELECT count(*) FROM pg_stat_activity WHERE pid = $1`, int32(pid)) != "0" { //nolint:gosec // a process id
		if time.Now().After(deadline) {
			f.t.Fatal("the connection does not end")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A topic is as long as its writer likes.
func TestDeadLettersOfALongTopic(t *testing.T) {
	f := newFixture(t)
	topic := strings.Repeat("häufig ", 10)
	for i := range 200 { // which no compression makes short
		topic += f.text(`SELECT md5($1::int::text)`, i)
	}
	long, other := f.dead(topic, key("a")), f.dead("orders", key("a"))
	var listed []int64
	err := f.ListDead(t.Context(), ListOptions{Topic: &topic}, func(d DeadLetter) error { listed = append(listed, d.ID); return nil })
	if err != nil || fmt.Sprint(listed) != fmt.Sprint([]int64{long.id}) {
		t.Errorf("listed %v, error %v", listed, err)
	}
	if failures, err := ReadFailures(t.Context(), f.conn, "public", "outbox"); err != nil || len(failures) != 2 || failures[0].Topic != topic {
		t.Errorf("%d topics, error %v", len(failures), err)
	}
	if done, err := f.RetryDead(t.Context(), Selection{Topic: topic}, f.findDead(Selection{Topic: topic})); err != nil || len(done) != 1 {
		t.Errorf("%d put back, error %v", len(done), err)
	}
	f.same(fmt.Sprint(other.id), `SELECT id FROM outbox_dead_letters`)
}

// No index may be too small for what its table holds.
func TestNoIndexHoldsTextOfTheUsers(t *testing.T) {
	f := newFixture(t)
	f.same("", `SELECT c.relname, a.attname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_attribute a ON a.attrelid = c.oid
		WHERE c.relnamespace = 'public'::regnamespace AND a.atttypid IN ('text'::regtype, 'bytea'::regtype, 'jsonb'::regtype)`)
}
