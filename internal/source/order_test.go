package source_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

// The interleavings of this file once let a later row of a key be claimed
// before an earlier one.

func drain(t *testing.T, c *source.Claimer) {
	t.Helper()
	for batch := claim(t, c, source.Exclusion{}); batch != nil; batch = claim(t, c, source.Exclusion{}) {
		settle(t, batch, all)
	}
}

func begin(t *testing.T, db *pgtest.Database) pgx.Tx {
	t.Helper()
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

func execTx(t *testing.T, tx pgx.Tx, sql string, arguments ...any) {
	t.Helper()
	if _, err := tx.Exec(t.Context(), sql, arguments...); err != nil {
		t.Fatal(err)
	}
}

func commit(t *testing.T, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func fill(t *testing.T, db *pgtest.Database, rows int) {
	t.Helper()
	db.Exec(t, fmt.Sprintf(`INSERT INTO outbox (topic, key) SELECT 't', 'k' || i FROM generate_series(1, %d) i`, rows))
}

// betweenQuestions lets so much time go by that the claimer asks again who
// writes.
func betweenQuestions() { time.Sleep(25 * time.Millisecond) }

// lateRows claims until both rows of the key late were seen, and returns their
// order.
func lateRows(t *testing.T, c *source.Claimer) []int64 {
	t.Helper()
	var got []int64
	eventually(t, func() bool {
		batch := claim(t, c, source.Exclusion{})
		if batch == nil {
			return false
		}
		for _, m := range batch.Messages() {
			if string(m.Key) == "late" {
				got = append(got, m.Sequence)
			}
		}
		settle(t, batch, all)
		return len(got) == 2
	})
	return got
}

func expectSorted(t *testing.T, got []int64) {
	t.Helper()
	if !slices.IsSorted(got) {
		t.Errorf("rows of one key in the order %v", got)
	}
}

// The claim that finds the writer gone does not look into the row's shard.
func TestRowThatNobodyLookedAtIsNotPassed(t *testing.T) {
	for round := range 6 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			c := claimer(db.Pool, func(o *source.Options) { o.BatchSize = 1000 })
			tx := begin(t, db)
			execTx(t, tx, `INSERT INTO outbox (topic, key) VALUES ('t', 'late')`)
			for range 2 {
				fill(t, db, 1000)
				drain(t, c)
				betweenQuestions()
			}
			fill(t, db, 1000)
			commit(t, tx)
			batch := claim(t, c, source.Exclusion{}) // 16 shards of 64
			seen := slices.Contains(sequences(batch), 1)
			settle(t, batch, all)
			if seen {
				return // the claim happened to take the row's shard
			}
			db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'late')`)
			expectSorted(t, lateRows(t, c))
		})
	}
}

// Another relay has the late row under way, and gives it back.
func TestRowUnderWayElsewhereIsNotPassed(t *testing.T) {
	db := pgtest.NewOutbox(t)
	here, elsewhere := claimer(db.Pool, nil), claimer(db.Pool, nil)
	tx := begin(t, db)
	execTx(t, tx, `INSERT INTO outbox (topic, key) VALUES ('t', 'late')`)
	fill(t, db, 500)
	drain(t, here)
	commit(t, tx)
	batch := claim(t, elsewhere, source.Exclusion{})
	expect(t, "elsewhere", sequences(batch), []int64{1})
	for range 5 {
		betweenQuestions()
		fill(t, db, 500)
		drain(t, here)
	}
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'late')`)
	batch.Release()
	expectSorted(t, lateRows(t, here))
}

// Object-relational mappers take the id first and insert later, in one
// transaction.
func TestIDTakenBeforeTheInsertIsNotPassed(t *testing.T) {
	db := pgtest.NewOutbox(t)
	c := claimer(db.Pool, nil)
	tx := begin(t, db)
	var id int64
	if err := tx.QueryRow(t.Context(), `SELECT nextval(pg_get_serial_sequence('outbox', 'id'))`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		fill(t, db, 500)
		drain(t, c)
		betweenQuestions()
	}
	execTx(t, tx, `INSERT INTO outbox (id, topic, key) VALUES ($1, 't', 'late')`, id)
	commit(t, tx)
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'late')`)
	expectSorted(t, lateRows(t, c))
}

// Building an index lets rows be locked and not be marked. The claim has to
// wait, not the marks of what was published.
func TestNothingIsHandedOutThatCannotBeMarked(t *testing.T) {
	for _, on := range []source.OnPublished{source.Mark, source.Delete} {
		t.Run(string(on), func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'k')`)
			tx := begin(t, db)
			execTx(t, tx, `CREATE INDEX ON outbox (topic)`)
			c := claimer(db.Pool, func(o *source.Options) { o.OnPublished = on; o.PublishTimeout = -4 * time.Second })
			if batch, err := c.Claim(t.Context(), source.Exclusion{}); err == nil {
				t.Errorf("handed out %v", sequences(batch))
			}
			commit(t, tx)
			// The session that gave up may get the row's shard before it ends.
			var batch source.Batch
			eventually(t, func() bool { batch = claim(t, c, source.Exclusion{}); return batch != nil })
			settle(t, batch, all)
		})
	}
}

func TestRowsThatCannotBeMarkedAreReported(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`,
		`CREATE TRIGGER nothing BEFORE UPDATE ON outbox FOR EACH ROW EXECUTE FUNCTION nothing()`,
		`INSERT INTO outbox (topic, key) VALUES ('t', 'k')`)
	if err := claim(t, claimer(db.Pool, nil), source.Exclusion{}).Settle(t.Context(), nil); err == nil {
		t.Error("no error although no row was marked")
	}
}

func TestLockedRowDoesNotStarveItsShard(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'k' FROM generate_series(1, 2000) i`,
		`INSERT INTO outbox (topic, key) SELECT 't', x FROM (SELECT 'o' || i AS x FROM generate_series(1, 2000) i) s
			WHERE hashtextextended(x, 0) & 63 = hashtextextended('k', 0) & 63`)
	tx := begin(t, db)
	execTx(t, tx, `SELECT FROM outbox WHERE id = 1 FOR UPDATE`)
	c := claimer(db.Pool, nil)
	eventually(t, func() bool {
		if batch := claim(t, c, source.Exclusion{}); batch != nil {
			settle(t, batch, all)
		}
		return db.Int(t, `SELECT count(*) FROM outbox WHERE key <> 'k' AND published_at IS NULL`) == 0
	})
	expect(t, "published of the locked key", db.Int(t, `SELECT count(*) FROM outbox WHERE key = 'k' AND published_at IS NOT NULL`), 0)
}

// Beyond the shards of a claim there are others with rows, however few each has.
func TestClaimOfAllItsShardsIsFull(t *testing.T) {
	for keys, want := range map[int]bool{3: false, 2000: true} {
		db := pgtest.NewOutbox(t)
		db.Exec(t, fmt.Sprintf(`INSERT INTO outbox (topic, key) SELECT 't', 'k' || min(i) FROM generate_series(1, %d) i GROUP BY hashtextextended('k' || i, 0) & 63`, keys))
		batch := claim(t, claimer(db.Pool, func(o *source.Options) { o.BatchSize = 1000 }), source.Exclusion{})
		expect(t, fmt.Sprintf("%d messages are a full batch", len(batch.Messages())), batch.Full(), want)
	}
}

// What a claim found locked is worked around by the next one that reads, even if
// another relay has the shards meanwhile.
func TestLockedRowIsRememberedWhileShardsAreTaken(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'k')`)
	c := claimer(db.Pool, nil)
	tx := begin(t, db)
	execTx(t, tx, `SELECT FROM outbox FOR UPDATE`)
	if _, err := c.Claim(t.Context(), source.Exclusion{}); !source.IsTransient(err) {
		t.Fatalf("error %v, want that of a locked row", err)
	}
	shards := begin(t, db)
	execTx(t, shards, `SELECT pg_advisory_xact_lock($1::int, s) FROM generate_series(0, 63) s`, int(source.LockClass("public", "outbox")))
	for range 2 { // asks, and then claims
		c.Notified()
		if batch, err := c.Claim(t.Context(), source.Exclusion{}); batch != nil || err != nil {
			t.Fatalf("claimed %v, %v beside another relay", sequences(batch), err)
		}
	}
	commit(t, shards)
	c.Notified()
	if batch, err := c.Claim(t.Context(), source.Exclusion{}); batch != nil || err != nil {
		t.Errorf("claimed %v, error %v, want the locked row to be worked around", sequences(batch), err)
	}
	commit(t, tx)
}

func TestUnusualIDsAndHeadersAreClaimed(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (id, topic, key) VALUES (0, 't', 'a'), (-5, 't', 'b')`,
		// One row whose headers alone exceed a batch.
		`INSERT INTO outbox (topic, key, headers) SELECT 't', 'a', jsonb_build_object('x', string_agg(gen_random_uuid()::text || md5(random()::text), '')) FROM generate_series(1, 200000)`)
	fill(t, db, 100)
	c := claimer(db.Pool, nil)
	eventually(t, func() bool {
		if batch := claim(t, c, source.Exclusion{}); batch != nil {
			settle(t, batch, all)
		}
		return db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`) == 0
	})
}

func TestIDsMayBeginAnew(t *testing.T) {
	db := pgtest.NewOutbox(t)
	c := claimer(db.Pool, nil)
	for range 4 {
		fill(t, db, 500)
		drain(t, c)
		betweenQuestions()
	}
	db.Exec(t, `TRUNCATE outbox RESTART IDENTITY`, `INSERT INTO outbox (topic, key) VALUES ('t', 'late'), ('t', 'late')`)
	expectSorted(t, lateRows(t, c))
}
