package source_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

// refuseMarks makes the database refuse to mark (or delete) rows for which the condition holds.
func refuseMarks(t *testing.T, db *pgtest.Database, condition string) {
	t.Helper()
	db.Exec(t, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF `+strings.ReplaceAll(condition, "ROW", "OLD")+` THEN RAISE EXCEPTION 'not this one'; END IF;
			IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
			RETURN NEW; END $$`,
		`CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION refuse()`)
}

// unsettledOf settles a batch of which all is published, and returns the error of what could not be recorded.
func unsettledOf(t *testing.T, batch source.Batch) *source.UnsettledError {
	t.Helper()
	err := batch.Settle(t.Context(), nil)
	if err == nil {
		return nil
	}
	unsettled, ok := errors.AsType[*source.UnsettledError](err)
	if !ok {
		t.Fatal(err)
	}
	return unsettled
}

func TestRestOfABatchIsSettled(t *testing.T) {
	for _, on := range []source.OnPublished{source.Mark, source.Delete} {
		t.Run(string(on), func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'k' FROM generate_series(1, 100) i`)
			refuseMarks(t, db, `ROW.id IN (7, 60, 61)`)
			c := claimer(db.Pool, func(o *source.Options) { o.OnPublished = on })
			batch := claim(t, c, source.Exclusion{})
			expect(t, "claimed", len(batch.Messages()), 100)
			err := unsettledOf(t, batch)
			if err == nil || err.Rows != 3 || err.Settled != 97 || !strings.Contains(err.Error(), "not this one") {
				t.Fatalf("settling: %+v", err)
			}
			expect(t, "pending", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`), 3)

			// They are not handed out again, and the rest of their key is.
			db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'k')`)
			batch = claim(t, c, source.Exclusion{})
			expect(t, "claimed", sequences(batch), []int64{101})
			settle(t, batch, all)
			expect(t, "left", c.Unsettled(), 3)

			// Once it works, it is known soon, however often they were refused before.
			for range 3 {
				_ = c.Resettle(t.Context())
			}
			db.Exec(t, `DROP TRIGGER refuse ON outbox`)
			for range 2 {
				_ = c.Resettle(t.Context())
			}
			expect(t, "pending", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`), 0)
			expect(t, "left", c.Unsettled(), 0)
		})
	}
}

func TestTrialSaysWhetherOthersCanBeMarked(t *testing.T) {
	for _, test := range []struct {
		name, condition, more string
		want                  source.Trial
	}{
		{"nobody else", `ROW.key = 'bad'`, ``, source.Untried},
		{"others", `ROW.key = 'bad'`, `INSERT INTO outbox (topic, key) VALUES ('t', 'good')`, source.Works},
		{"none", `true`, `INSERT INTO outbox (topic, key) VALUES ('t', 'good')`, source.Fails},
	} {
		t.Run(test.name, func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'bad'), ('t', 'bad')`)
			refuseMarks(t, db, test.condition)
			c := claimer(db.Pool, nil)
			batch := claim(t, c, source.Exclusion{})
			if test.more != "" {
				db.Exec(t, test.more)
			}
			for try := range 2 { // by themselves, and while they wait for their next try
				settle := c.Resettle
				if try == 0 {
					settle = func(ctx context.Context) error { return batch.Settle(ctx, nil) }
				}
				err := settle(t.Context())
				unsettled, ok := errors.AsType[*source.UnsettledError](err)
				if !ok || unsettled.Others != test.want || unsettled.Rows != 2 || unsettled.Settled != 0 {
					t.Errorf("try %d: %+v, want %v", try, err, test.want)
				}
			}
			expect(t, "marked", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NOT NULL`), 0)
		})
	}
}

// Ids that began again are no rows that were published.
func TestUnsettledRowIsKnownByItsMessage(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'k')`)
	refuseMarks(t, db, `true`)
	c := claimer(db.Pool, nil)
	if err := unsettledOf(t, claim(t, c, source.Exclusion{})); err == nil {
		t.Fatal("it was marked")
	}
	db.Exec(t, `TRUNCATE outbox RESTART IDENTITY`, `DROP TRIGGER refuse ON outbox`, `INSERT INTO outbox (topic, key) VALUES ('t', 'k')`)
	eventually(t, func() bool {
		_ = c.Resettle(t.Context())
		batch := claim(t, c, source.Exclusion{})
		if batch == nil {
			return false
		}
		expect(t, "claimed", fmt.Sprint(sequences(batch)), "[1]")
		settle(t, batch, all)
		return true
	})
}
