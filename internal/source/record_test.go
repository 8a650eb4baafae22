package source_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

// settleEach settles a batch with one outcome for all of its messages but the first, and returns what could not be
// recorded.
func settleEach(t *testing.T, batch source.Batch, of source.Outcome) *source.UnrecordedError {
	t.Helper()
	results := make([]source.Outcome, len(batch.Messages()))
	for i := range results {
		results[i] = of
	}
	results[0] = source.Outcome{Verdict: source.Published}
	err := batch.Settle(t.Context(), results)
	if err == nil {
		return nil
	}
	unrecorded, ok := errors.AsType[*source.UnrecordedError](err)
	if !ok {
		t.Fatal(err)
	}
	return unrecorded
}

// A row that the database does not let go is parked alone: the others of its batch become dead letters, or are deleted.
func TestRowThatCannotGoIsParkedAlone(t *testing.T) {
	for name, test := range map[string]struct{ kept, why, state string }{
		"foreign key": {`CREATE TABLE invoices (event bigint CONSTRAINT invoices_event_fk REFERENCES outbox);
			INSERT INTO invoices VALUES (50)`, "invoices_event_fk", "parked"},
		"trigger that raises": {`CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF OLD.id = 50 THEN RAISE EXCEPTION 'keep this one'; END IF; RETURN OLD; END $$;
			CREATE TRIGGER keep BEFORE DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION keep()`, "keep this one", "parked"},
		"trigger with a code of its own": {`CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF OLD.id = 50 THEN RAISE EXCEPTION 'keep this one' USING ERRCODE = 'U0001'; END IF; RETURN OLD; END $$;
			CREATE TRIGGER keep BEFORE DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION keep()`, "keep this one", "parked"},
		"trigger that leaves it out": {`CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF OLD.id = 50 THEN RETURN NULL; END IF; RETURN OLD; END $$;
			CREATE TRIGGER keep BEFORE DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION keep()`, "hinders", "parked"},
	} {
		for verdict, become := range map[source.Verdict]string{source.Dead: "moved to the dead letters", source.Dropped: "deleted"} {
			t.Run(fmt.Sprintf("%s, %s", name, become), func(t *testing.T) {
				db := pgtest.NewOutbox(t)
				db.Exec(t, `INSERT INTO outbox (topic) SELECT 't' FROM generate_series(1, 100)`, test.kept)
				c := claimer(db.Pool, func(o *source.Options) { o.Ordering = source.OrderNone })
				outcome := source.Outcome{Verdict: verdict, Attempts: 5, Reason: "test", Error: "refused by the test", RetryIn: time.Hour}
				batch := claim(t, c, source.Exclusion{})
				expect(t, "messages", len(batch.Messages()), 100)
				unrecorded := settleEach(t, batch, outcome)
				if unrecorded == nil || unrecorded.Kept[50] == nil || !strings.Contains(unrecorded.Error(), "row 50: ") || !strings.Contains(unrecorded.Error(), test.why) {
					t.Fatalf("got %+v", unrecorded)
				}
				expect(t, "lost", unrecorded.Lost(50) || unrecorded.Lost(49), false)
				expect(t, "rows", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`), 1)
				expect(t, "published", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NOT NULL`), 1)
				if verdict == source.Dead {
					expect(t, "dead letters", db.Int(t, `SELECT count(*) FROM outbox_dead_letters`), 98)
				}
				expect(t, "entries", entries(t, db), "50 parked 5")
				expect(t, "entries with the reason", db.Int(t, `SELECT count(*) FROM outbox_parked
					WHERE error LIKE 'refused by the test; it cannot be `+become+`:%`+test.why+`%'`), 1)

				// So it stays when it is tried again, until the database lets it go.
				db.Exec(t, `UPDATE outbox_parked SET next_retry_at = now()`)
				outcome.Attempts = 6
				held := claimHeld(t, c)
				if err := held.Settle(t.Context(), []source.Outcome{outcome}); err == nil {
					t.Error("it is said to be gone")
				}
				expect(t, "entries", entries(t, db), "50 parked 6")
				db.Exec(t, `DROP TABLE IF EXISTS invoices`, `DROP TRIGGER IF EXISTS keep ON outbox`, `UPDATE outbox_parked SET next_retry_at = now()`)
				eventually(t, func() bool {
					if held := claimHeld(t, c); held != nil {
						if err := held.Settle(t.Context(), []source.Outcome{outcome}); err != nil {
							t.Error(err)
						}
					}
					return entries(t, db) == ""
				})
				expect(t, "rows", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`), 0)
			})
		}
	}
}

// The same of a row that can neither go nor be parked: of it alone nothing is recorded.
func TestRefusalThatCannotBeRecordedIsAlone(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic) SELECT 't' FROM generate_series(1, 100)`,
		`ALTER TABLE outbox_parked ADD CONSTRAINT not_50 CHECK (id <> 50)`)
	c := claimer(db.Pool, func(o *source.Options) { o.Ordering = source.OrderNone })
	unrecorded := settleEach(t, claim(t, c, source.Exclusion{}), refused(time.Hour))
	if unrecorded == nil || !unrecorded.Lost(50) || unrecorded.Lost(49) || !strings.Contains(unrecorded.Error(), "row 50: ") || !strings.Contains(unrecorded.Error(), "not_50") {
		t.Fatalf("got %v", unrecorded)
	}
	expect(t, "entries", db.Int(t, `SELECT count(*) FROM outbox_parked`), 98)
}

// Entries that the database does not let change keep no others from it.
func TestEntryThatCannotChangeIsAlone(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'key-' || i FROM generate_series(1, 20) i`)
	c := claimer(db.Pool, nil)
	eventually(t, func() bool {
		if batch := claim(t, c, source.Exclusion{}); batch != nil {
			as := outcomes{}
			for _, id := range sequences(batch) {
				as[id] = refused(0)
			}
			settleAs(t, batch, as)
		}
		return db.Int(t, `SELECT count(*) FROM outbox_parked`) == 20
	})
	db.Exec(t, `ALTER TABLE outbox_parked ADD CONSTRAINT not_5 CHECK (NOT (id = 5 AND state = 'draining'))`,
		`DELETE FROM outbox`) // all of them are cancelled
	eventually(t, func() bool {
		if batch, err := c.ClaimHeld(t.Context(), source.Exclusion{}); batch != nil {
			t.Fatal("there is a batch")
		} else if err != nil && !strings.Contains(err.Error(), "not_5") {
			t.Fatal(err)
		}
		return db.Int(t, `SELECT count(*) FROM outbox_parked`) == 1
	})
	expect(t, "entries", entries(t, db), "5 retrying 1")
}
