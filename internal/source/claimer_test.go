package source_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

func claimer(pool *pgxpool.Pool, change func(*source.Options)) *source.Claimer {
	options := source.Options{
		Schema: "public", Table: "outbox", Ordering: source.OrderKey, OnPublished: source.Mark,
		BatchSize: 100, PublishTimeout: 10 * time.Second,
	}
	if change != nil {
		change(&options)
	}
	return source.NewClaimer(pool, options)
}

// claim repeats a claim that met a locked row, as the delivery loop does.
func claim(t *testing.T, c *source.Claimer, exclude source.Exclusion) source.Batch {
	t.Helper()
	for range 3 {
		batch, err := c.Claim(t.Context(), exclude)
		if err == nil && batch != nil {
			h := &held{Batch: batch}
			t.Cleanup(h.Release)
			return h
		}
		if err == nil {
			return nil
		}
		if !source.IsTransient(err) {
			t.Fatal(err)
		}
	}
	t.Fatal("three claims met locked rows")
	return nil
}

// held is a batch that is released when its test ends without settling it, so
// that a failed test does not wait for its connection.
type held struct {
	source.Batch
	ended bool
}

func (h *held) Settle(ctx context.Context, outcomes []source.Outcome) error {
	h.ended = true
	return h.Batch.Settle(ctx, outcomes)
}

func (h *held) Release() {
	if !h.ended {
		h.Batch.Release()
	}
	h.ended = true
}

// holding is an exclusion of rows.
func holding(holds func(*source.Row) bool) source.Exclusion { return source.Exclusion{Holds: holds} }

func sequences(batch source.Batch) []int64 {
	if batch == nil {
		return nil
	}
	var ids []int64
	for _, m := range batch.Messages() {
		ids = append(ids, m.Sequence)
	}
	slices.Sort(ids)
	return ids
}

// outcome says what became of message i.
type outcome func(i int) source.Verdict

func all(int) source.Verdict { return source.Published }

// some are published, the others given back.
func some(published func(i int) bool) outcome {
	return func(i int) source.Verdict {
		if published(i) {
			return source.Published
		}
		return source.GivenBack
	}
}

func settle(t *testing.T, batch source.Batch, of outcome) {
	t.Helper()
	outcomes := make([]source.Outcome, len(batch.Messages()))
	for i := range outcomes {
		outcomes[i] = source.Outcome{Verdict: of(i), Attempts: batch.Failures(i).Attempts + 1, Reason: "test", Error: "refused by the test", RetryIn: time.Minute}
		if outcomes[i].Verdict == source.GivenBack {
			outcomes[i] = source.Outcome{}
		}
	}
	if err := batch.Settle(t.Context(), outcomes); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestMessagesAreTheRows(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (message_id, topic, key, type, payload, content_type, headers, created_at) VALUES
		('6f1c8f4e-0000-4000-8000-00000000002a', 'orders', 'ä', 'OrderPlaced', '\x00ff', 'text/x', '{"a": "1", "b": "x\"\u00e9\n"}', '2026-01-02 03:04:05.678901+00'),
		(DEFAULT, 'orders', NULL, '', NULL, DEFAULT, DEFAULT, DEFAULT),
		(DEFAULT, 'orders', '', '', '', DEFAULT, DEFAULT, DEFAULT)`)
	batch := claim(t, claimer(db.Pool, nil), source.Exclusion{})
	defer batch.Release()
	messages := slices.Clone(batch.Messages())
	slices.SortFunc(messages, func(a, b sinks.Message) int { return int(a.Sequence - b.Sequence) })
	if len(messages) != 3 {
		t.Fatalf("got %d messages, want 3", len(messages))
	}
	first := messages[0]
	expect(t, "id", fmt.Sprintf("%x", first.ID), "6f1c8f4e00004000800000000000002a")
	expect(t, "topic, key, type", first.Topic+" "+string(first.Key)+" "+first.Type, "orders ä OrderPlaced")
	expect(t, "payload", first.Payload, []byte{0, 255})
	expect(t, "content type", first.ContentType, "text/x")
	expect(t, "headers", first.Headers, []sinks.Header{{Name: "a", Value: "1"}, {Name: "b", Value: "x\"é\n"}})
	expect(t, "created_at", first.CreatedAt.Format(time.RFC3339Nano), "2026-01-02T03:04:05.678901Z")
	if messages[1].Key != nil || messages[1].Payload != nil {
		t.Error("null key or payload is not nil")
	}
	if messages[2].Key == nil || messages[2].Payload == nil {
		t.Error("empty key or payload is nil")
	}
}

func TestTwoClaimersNeverShareAKey(t *testing.T) {
	db := pgtest.NewOutbox(t)
	const rows, keys = 20_000, 100
	db.Exec(t, fmt.Sprintf(`INSERT INTO outbox (topic, key) SELECT 't', 'k' || i %% %d FROM generate_series(1, %d) i`, keys, rows))
	var mutex sync.Mutex
	held := map[string]int{}
	last := map[string]int64{}
	seen := 0
	var wait sync.WaitGroup
	for worker := range 4 {
		wait.Go(func() {
			c := claimer(db.Pool, nil)
			for {
				batch, err := c.Claim(context.Background(), source.Exclusion{})
				if err != nil {
					t.Error(err)
					return
				}
				if batch == nil {
					mutex.Lock()
					done := seen == rows
					mutex.Unlock()
					if done {
						return
					}
					continue
				}
				mutex.Lock()
				for _, m := range batch.Messages() {
					key := string(m.Key)
					if owner, ok := held[key]; ok && owner != worker {
						t.Errorf("key %s is held by workers %d and %d", key, owner, worker)
					}
					held[key] = worker
					if m.Sequence <= last[key] {
						t.Errorf("key %s: %d came after %d", key, m.Sequence, last[key])
					}
					last[key] = m.Sequence
					seen++
				}
				mutex.Unlock()
				mutex.Lock()
				for _, m := range batch.Messages() {
					delete(held, string(m.Key))
				}
				mutex.Unlock()
				if err := batch.Settle(context.Background(), nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	expect(t, "claimed rows", seen, rows)
	expect(t, "pending", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`), 0)
}

func TestUnsettledRowsStayPending(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'k' FROM generate_series(1, 10)`)
	c := claimer(db.Pool, nil)
	claim(t, c, source.Exclusion{}).Release()
	batch := claim(t, c, source.Exclusion{})
	expect(t, "after a release", sequences(batch), []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	settle(t, batch, some(func(i int) bool { return i < 4 }))
	batch = claim(t, c, source.Exclusion{})
	expect(t, "after a prefix", sequences(batch), []int64{5, 6, 7, 8, 9, 10})
	settle(t, batch, all)
	if claim(t, c, source.Exclusion{}) != nil {
		t.Error("claimed a published row")
	}
}

func TestRowLockedElsewhereHoldsBackItsKeyOnly(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'k' || i % 2 FROM generate_series(1, 10) i`)
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `DELETE FROM outbox WHERE id = 3`); err != nil {
		t.Fatal(err)
	}
	c := claimer(db.Pool, nil)
	batch := claim(t, c, source.Exclusion{})
	expect(t, "while row 3 is locked", sequences(batch), []int64{1, 2, 4, 6, 8, 10})
	settle(t, batch, all)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	var batch2 source.Batch
	eventually(t, func() bool { batch2 = claim(t, c, source.Exclusion{}); return batch2 != nil })
	expect(t, "after it was deleted", sequences(batch2), []int64{5, 7, 9})
	settle(t, batch2, all)
}

func TestTotalOrderWaitsForALockedRow(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'k' || i FROM generate_series(1, 10) i`)
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `SELECT FROM outbox WHERE id = 4 FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	c := claimer(db.Pool, func(o *source.Options) { o.Ordering = source.OrderTotal })
	batch := claim(t, c, source.Exclusion{})
	expect(t, "while row 4 is locked", sequences(batch), []int64{1, 2, 3})
	settle(t, batch, all)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	batch = claim(t, c, source.Exclusion{})
	expect(t, "after it was unlocked", sequences(batch), []int64{4, 5, 6, 7, 8, 9, 10})
	other := claimer(db.Pool, func(o *source.Options) { o.Ordering = source.OrderTotal })
	if claim(t, other, source.Exclusion{}) != nil {
		t.Error("two batches of one total order at a time")
	}
	settle(t, batch, all)
}

func TestTotalOrderGoesAcrossKeysAndShards(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key, available_at) SELECT 't', CASE WHEN i % 7 > 0 THEN 'k' || i % 50 END,
		CASE i % 5 WHEN 0 THEN now() - interval '1 s' WHEN 1 THEN now() + interval '1 h' END FROM generate_series(1, 1000) i`)
	c := claimer(db.Pool, func(o *source.Options) { o.Ordering = source.OrderTotal; o.BatchSize = 150 })
	last, count := int64(0), 0
	for {
		batch := claim(t, c, source.Exclusion{})
		if batch == nil {
			break
		}
		for _, m := range batch.Messages() {
			if m.Sequence <= last {
				t.Fatalf("%d came after %d", m.Sequence, last)
			}
			last = m.Sequence
			count++
		}
		settle(t, batch, all)
	}
	expect(t, "rows", count, 800)
}

func TestOrderNonePassesOverLockedRows(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'k' FROM generate_series(1, 10)`)
	none := func(o *source.Options) { o.Ordering = source.OrderNone; o.BatchSize = 5 }
	first, second := claimer(db.Pool, none), claimer(db.Pool, none)
	a := claim(t, first, source.Exclusion{})
	b := claim(t, second, source.Exclusion{})
	expect(t, "both batches", slices.Sorted(slices.Values(append(sequences(a), sequences(b)...))), []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	settle(t, a, all)
	b.Release()
	expect(t, "after a release", len(sequences(claim(t, first, source.Exclusion{}))), 5)
}

func TestDelayedRows(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key, available_at) VALUES
		('t', 'k', now() + interval '1 hour'), ('t', 'k', NULL), ('t', 'k', now() - interval '1 s'), ('t', 'k', NULL)`)
	c := claimer(db.Pool, nil)
	batch := claim(t, c, source.Exclusion{})
	var order []int64
	for _, m := range batch.Messages() {
		order = append(order, m.Sequence)
	}
	expect(t, "due rows in id order", order, []int64{2, 3, 4})
	settle(t, batch, all)
	if claim(t, c, source.Exclusion{}) != nil {
		t.Error("claimed a row before its time")
	}
	db.Exec(t, `UPDATE outbox SET available_at = now() WHERE id = 1`)
	eventually(t, func() bool {
		batch = claim(t, c, source.Exclusion{})
		return batch != nil
	})
	expect(t, "due now", sequences(batch), []int64{1})
	settle(t, batch, all)
}

func TestExclusions(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key, type) VALUES
		('a', 'k', 'X'), ('a', 'l"\,{}', 'X'), ('b', 'k', 'X'), ('b', NULL, 'Y'), ('c', NULL, 'X'), ('c', NULL, 'Y')`)
	for name, test := range map[string]struct {
		exclude source.Exclusion
		want    []int64
	}{
		"topic": {holding(func(r *source.Row) bool { return r.Topic == "a" || r.Topic == "c" }), []int64{3, 4}},
		"key": {holding(func(r *source.Row) bool {
			return r.Topic == "a" && string(r.Key) == `l"\,{}` || r.Topic == "b" && string(r.Key) == "k"
		}), []int64{1, 4, 5, 6}},
		"no key": {holding(func(r *source.Row) bool { return r.Key == nil }), []int64{1, 2, 3}},
		"id":     {holding(func(r *source.Row) bool { return r.ID == 5 }), []int64{1, 2, 3, 4, 6}},
		"type":   {holding(func(r *source.Row) bool { return r.Type == "X" }), []int64{4, 6}},
	} {
		for _, ordering := range []source.Ordering{source.OrderKey, source.OrderNone, source.OrderTotal} {
			t.Run(name+"/"+string(ordering), func(t *testing.T) {
				batch := claim(t, claimer(db.Pool, func(o *source.Options) { o.Ordering = ordering }), test.exclude)
				defer batch.Release()
				expect(t, "rows", sequences(batch), test.want)
			})
		}
	}
}

func TestBatchIsBoundedInBytes(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key, payload) SELECT 't', 'k', decode(repeat('00', 3000000), 'hex') FROM generate_series(1, 6)`)
	c := claimer(db.Pool, nil)
	var sizes []int
	for {
		batch := claim(t, c, source.Exclusion{})
		if batch == nil {
			break
		}
		sizes = append(sizes, len(batch.Messages()))
		settle(t, batch, all)
	}
	expect(t, "rows per batch", sizes, []int{3, 3})
}

// A transaction that commits late must not be overtaken by later rows of its
// key, however far other keys of its shard have got meanwhile.
func TestLateCommitIsNotOvertaken(t *testing.T) {
	db := pgtest.NewOutbox(t)
	for _, ordering := range []source.Ordering{source.OrderKey, source.OrderTotal} {
		t.Run(string(ordering), func(t *testing.T) {
			tx, err := db.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.Background()) }()
			var late int64
			if err := tx.QueryRow(t.Context(), `INSERT INTO outbox (topic, key) VALUES ('t', 'late') RETURNING id`).Scan(&late); err != nil {
				t.Fatal(err)
			}
			c := claimer(db.Pool, func(o *source.Options) { o.Ordering = ordering })
			// Publish rows above it, in every shard, for as long as floors could take
			// to rise past it.
			for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); {
				db.Exec(t, `INSERT INTO outbox (topic, key, created_at) SELECT 't', 'k' || i, now() - interval '1 h' FROM generate_series(1, 500) i`)
				for {
					batch := claim(t, c, source.Exclusion{})
					if batch == nil {
						break
					}
					if slices.Contains(sequences(batch), late) {
						t.Fatal("claimed an uncommitted row")
					}
					settle(t, batch, all)
				}
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'late')`)
			batch := claim(t, c, source.Exclusion{})
			if ids := sequences(batch); len(ids) != 2 || ids[0] != late {
				t.Errorf("claimed %v, want row %d and the one after it", ids, late)
			}
			settle(t, batch, all)
		})
	}
}

func TestAsynchronousCommitIsFlushedBeforeItIsHandedOut(t *testing.T) {
	db := pgtest.NewOutbox(t)
	c := claimer(db.Pool, nil)
	for range 50 {
		var lsn string
		err := pgx.BeginFunc(t.Context(), db.Pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), `SET LOCAL synchronous_commit = off`)
			if err == nil {
				_, err = tx.Exec(t.Context(), `INSERT INTO outbox (topic, key) VALUES ('t', 'k')`)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Pool.QueryRow(t.Context(), `SELECT pg_current_wal_insert_lsn()`).Scan(&lsn); err != nil {
			t.Fatal(err)
		}
		batch := claim(t, c, source.Exclusion{})
		var flushed bool
		if err := db.Pool.QueryRow(t.Context(), `SELECT pg_current_wal_flush_lsn() >= $1::pg_lsn`, lsn).Scan(&flushed); err != nil {
			t.Fatal(err)
		}
		if !flushed {
			t.Fatal("a row was handed out before its commit was on disk")
		}
		settle(t, batch, all)
	}
}

func TestServerEndsAFrozenClaim(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'k')`)
	frozen := claimer(db.Pool, func(o *source.Options) { o.PublishTimeout = -4500 * time.Millisecond }) // plus its margin: 500 ms
	batch := claim(t, frozen, source.Exclusion{})
	other := claimer(db.Pool, nil)
	if claim(t, other, source.Exclusion{}) != nil {
		t.Fatal("two claims of one row")
	}
	var successor source.Batch
	eventually(t, func() bool { successor = claim(t, other, source.Exclusion{}); return successor != nil })
	if err := batch.Settle(t.Context(), nil); err == nil {
		t.Error("a claim was settled after its locks were gone")
	}
	settle(t, successor, all)
}

func TestDeleteMode(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'k' FROM generate_series(1, 10)`)
	settle(t, claim(t, claimer(db.Pool, func(o *source.Options) { o.OnPublished = source.Delete }), source.Exclusion{}), some(func(i int) bool { return i < 7 }))
	expect(t, "rows left", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`), 3)
	expect(t, "rows", db.Int(t, `SELECT count(*) FROM outbox`), 3)
}

func TestNamesAreQuoted(t *testing.T) {
	db := pgtest.New(t)
	schema, table := `My "Schema"`, `Out'b\ox; $sql$ – x`
	db.Migrate(t, schema, table)
	name := pgx.Identifier{schema, table}.Sanitize()
	db.Exec(t, `INSERT INTO `+name+` (topic, key) VALUES ('t', 'k')`)
	var id string
	publish := pgx.Identifier{schema, table + "_publish"}.Sanitize()
	if err := db.Pool.QueryRow(t.Context(), `SELECT `+publish+`('t', 'k', 'T', '{"a": 1}')::text`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	for _, ordering := range []source.Ordering{source.OrderKey, source.OrderNone, source.OrderTotal} {
		c := claimer(db.Pool, func(o *source.Options) { o.Schema, o.Table, o.Ordering = schema, table, ordering })
		batch := claim(t, c, source.Exclusion{})
		expect(t, "rows", sequences(batch), []int64{1, 2})
		if !bytes.Equal(batch.Messages()[1].Payload, []byte(`{"a": 1}`)) {
			t.Errorf("payload %q", batch.Messages()[1].Payload)
		}
		batch.Release()
	}
	if pruned, err := source.NewPruner(db.Pool, schema, table, time.Hour).Prune(t.Context()); err != nil || pruned != 0 {
		t.Error(pruned, err)
	}
}

func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen within 20 s")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestIdleClaimerFindsRowsAndLeavesNothingLocked(t *testing.T) {
	for _, ordering := range []source.Ordering{source.OrderKey, source.OrderNone, source.OrderTotal} {
		t.Run(string(ordering), func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			c := claimer(db.Pool, func(o *source.Options) { o.Ordering = ordering })
			for round := range 2 {
				for range 20 {
					if batch := claim(t, c, source.Exclusion{}); batch != nil {
						t.Fatalf("claimed %v of an empty table", sequences(batch))
					}
				}
				expect(t, "advisory locks", db.Int(t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
					AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`), 0)
				db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'a')`)
				batch := claim(t, c, source.Exclusion{})
				expect(t, "claimed rows", sequences(batch), []int64{int64(round + 1)})
				settle(t, batch, all)
			}
		})
	}
}
