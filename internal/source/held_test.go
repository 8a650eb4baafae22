package source_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

// refused is the outcome of a message that is to be tried again after a pause.
func refused(pause time.Duration) source.Outcome {
	return source.Outcome{Verdict: source.Retrying, Attempts: 1, Reason: "test", Error: "refused by the test", RetryIn: pause}
}

// outcomes maps ids to what becomes of them; the others are published, but for
// those behind one of their key that is not.
type outcomes map[int64]source.Outcome

// settleAs settles a batch as a loop would.
func settleAs(t *testing.T, batch source.Batch, as outcomes) {
	t.Helper()
	if batch == nil {
		t.Fatal("there is no batch")
	}
	results := make([]source.Outcome, len(batch.Messages()))
	stuck := map[string]bool{}
	for i, m := range batch.Messages() {
		o, ok := as[m.Sequence]
		switch {
		case m.Key != nil && stuck[string(m.Key)]:
		case !ok:
			results[i].Verdict = source.Published
		default:
			if o.Verdict == source.Retrying || o.Verdict == source.Parked {
				o.Attempts = batch.Failures(i).Attempts + 1
			}
			results[i] = o
			stuck[string(m.Key)] = true
		}
	}
	if err := batch.Settle(t.Context(), results); err != nil {
		t.Fatal(err)
	}
}

func claimHeld(t *testing.T, c *source.Claimer) source.Batch {
	t.Helper()
	return claimHeldBut(t, c, source.Exclusion{})
}

func claimHeldBut(t *testing.T, c *source.Claimer, exclude source.Exclusion) source.Batch {
	t.Helper()
	batch, err := c.ClaimHeld(t.Context(), exclude)
	if err != nil {
		t.Fatal(err)
	}
	if batch == nil {
		return nil
	}
	h := &held{Batch: batch}
	t.Cleanup(h.Release)
	return h
}

// drainHeld claims held back messages until nothing is held back any more, and
// returns them in the order in which they were published.
func drainHeld(t *testing.T, db *pgtest.Database, c *source.Claimer) (ids []int64) {
	t.Helper()
	eventually(t, func() bool {
		if batch := claimHeld(t, c); batch != nil {
			for _, m := range batch.Messages() {
				ids = append(ids, m.Sequence)
			}
			settle(t, batch, all)
		}
		return db.Int(t, `SELECT count(*) FROM outbox_parked`) == 0
	})
	return ids
}

func entries(t *testing.T, db *pgtest.Database) string {
	t.Helper()
	var text string
	err := db.Pool.QueryRow(t.Context(), `SELECT coalesce(string_agg(id || ' ' || state || ' ' || attempts, ', ' ORDER BY id), '') FROM outbox_parked`).Scan(&text)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// pendingIDs claims and settles everything that is not held back.
func pendingIDs(t *testing.T, c *source.Claimer) (ids []int64) {
	t.Helper()
	for range 10 { // a claim takes 16 shards
		if batch := claim(t, c, source.Exclusion{}); batch != nil {
			ids = append(ids, sequences(batch)...)
			settle(t, batch, all)
		}
	}
	slices.Sort(ids)
	return ids
}

func TestRefusedMessageHoldsBackItsKeyForEverybody(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'a'), ('t', 'a'), ('t', 'a'), ('t', 'b'), ('u', 'a'), ('t', NULL)`)
	here := claimer(db.Pool, nil)
	eventually(t, func() bool {
		batch := claim(t, here, source.Exclusion{})
		if batch == nil {
			return false
		}
		found := slices.Contains(sequences(batch), 2)
		settleAs(t, batch, outcomes{2: refused(0), 3: {}})
		return found
	})
	expect(t, "entries", entries(t, db), "2 retrying 1")
	expect(t, "marked", db.Int(t, `SELECT count(*) FROM outbox WHERE id = 1 AND published_at IS NOT NULL`), 1)
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'a'), ('t', 'b')`) // 7, 8

	elsewhere := claimer(db.Pool, nil)
	var got []int64
	for _, c := range []*source.Claimer{elsewhere, here} {
		got = append(got, pendingIDs(t, c)...)
	}
	for _, id := range []int64{2, 3, 7} {
		if slices.Contains(got, id) {
			t.Errorf("row %d of the key was claimed", id)
		}
	}
	expect(t, "pending", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`), 3)

	batch := claimHeld(t, elsewhere)
	expect(t, "held", sequences(batch), []int64{2})
	expect(t, "failures", batch.Failures(0), source.Failures{Attempts: 1})
	if other := claimHeld(t, here); other != nil {
		t.Errorf("%v is claimed twice", sequences(other))
	}
	settleAs(t, batch, outcomes{2: {Verdict: source.Parked, Reason: "again", Error: "still refused\x00\xff", RetryIn: time.Hour}})
	expect(t, "entries", entries(t, db), "2 parked 2")
	expect(t, "parked", db.Int(t, `SELECT count(*) FROM outbox_parked WHERE parked_at IS NOT NULL AND reason = 'again'
		AND error = 'still refused��' AND next_retry_at > now() + interval '50 minutes' AND first_failed_at < last_failed_at AND key = 'a'`), 1)
	if batch := claimHeld(t, elsewhere); batch != nil {
		t.Errorf("%v is claimed before its time", sequences(batch))
	}
	if due, any := elsewhere.HeldDue(); !any || time.Until(due) < 50*time.Minute {
		t.Errorf("due at %v, %t", due, any)
	}

	db.Exec(t, `UPDATE outbox_parked SET next_retry_at = now()`) // an operator
	eventually(t, func() bool {                                  // here finds out although it is idle
		claim(t, here, source.Exclusion{})
		due, any := here.HeldDue()
		return any && time.Until(due) <= 0
	})
	batch = claimHeld(t, here)
	expect(t, "failures", batch.Failures(0), source.Failures{Attempts: 2, Parked: true})
	settle(t, batch, all)
	expect(t, "entries", entries(t, db), "2 draining 2")
	expect(t, "drained", drainHeld(t, db, here), []int64{3, 7})
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'a')`)
	expect(t, "afterwards", pendingIDs(t, elsewhere), []int64{9})
}

func TestGivenUpMessages(t *testing.T) {
	for _, verdict := range []source.Verdict{source.Dead, source.Dropped} {
		for _, before := range []int{0, 1, 2} {
			t.Run(fmt.Sprintf("verdict %d after %d attempts", verdict, before), func(t *testing.T) {
				db := pgtest.NewOutbox(t)
				db.Exec(t, `INSERT INTO outbox (topic, key, type, payload, content_type, headers, created_at)
					VALUES ('t', 'a', 'Bad', '\x00ff', 'text/x', '{"h": "1"}', '2026-01-02'), ('t', 'a', '', '', DEFAULT, DEFAULT, DEFAULT)`,
					`CREATE TABLE was AS SELECT * FROM outbox`)
				c := claimer(db.Pool, nil)
				batch := claim(t, c, source.Exclusion{})
				for range before {
					settleAs(t, batch, outcomes{1: refused(0)})
					batch = claimHeld(t, c)
				}
				settleAs(t, batch, outcomes{1: {Verdict: verdict, Attempts: before + 1, Reason: "given_up", Error: "refused"}})
				expect(t, "row", db.Int(t, `SELECT count(*) FROM outbox WHERE id = 1`), 0)
				dead := 0
				if verdict == source.Dead {
					dead = 1
				}
				expect(t, "dead letters", db.Int(t, fmt.Sprintf(`SELECT count(*) FROM outbox_dead_letters d JOIN was w USING (id, message_id, topic, key, type, payload, content_type, headers, created_at)
					WHERE d.attempts = %d AND d.reason = 'given_up' AND d.error = 'refused' AND d.available_at IS NULL AND d.first_failed_at <= d.last_failed_at`, before+1)), dead)
				rest := drainHeld(t, db, c)
				rest = append(rest, pendingIDs(t, c)...)
				expect(t, "afterwards", rest, []int64{2})
			})
		}
	}
}

func TestDeadLetterOfAnIDThatBeganAnew(t *testing.T) {
	db := pgtest.NewOutbox(t)
	c := claimer(db.Pool, nil)
	for range 2 {
		db.Exec(t, `TRUNCATE outbox RESTART IDENTITY`, `INSERT INTO outbox (topic, key) VALUES ('t', 'a')`)
		var batch source.Batch
		eventually(t, func() bool { batch = claim(t, c, source.Exclusion{}); return batch != nil })
		settleAs(t, batch, outcomes{1: {Verdict: source.Dead, Attempts: 1, Reason: "r", Error: "e"}})
	}
	expect(t, "dead letters", db.Int(t, `SELECT count(*) FROM outbox_dead_letters WHERE id = 1`), 2)

	// An entry of a row that is gone holds back neither its new namesake nor its key.
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'old')`)
	eventually(t, func() bool {
		batch := claim(t, c, source.Exclusion{})
		if batch != nil {
			settleAs(t, batch, outcomes{2: refused(0)})
		}
		return batch != nil
	})
	db.Exec(t, `TRUNCATE outbox RESTART IDENTITY`, `INSERT INTO outbox (topic, key) VALUES ('t', 'new'), ('t', NULL), ('t', 'old')`)
	var got []int64
	eventually(t, func() bool {
		if batch := claimHeld(t, c); batch != nil {
			got = append(got, sequences(batch)...)
			settle(t, batch, all)
		}
		got = append(got, pendingIDs(t, c)...)
		return len(got) >= 3
	})
	slices.Sort(got)
	expect(t, "published", got, []int64{1, 2, 3})
	expect(t, "drained", drainHeld(t, db, c), []int64(nil))
}

func TestMessageWithoutKeyIsHeldBackAlone(t *testing.T) {
	for _, ordering := range []source.Ordering{source.OrderKey, source.OrderNone} {
		t.Run(string(ordering), func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			db.Exec(t, `INSERT INTO outbox (topic) VALUES ('t'), ('t'), ('t')`)
			c := claimer(db.Pool, func(o *source.Options) { o.Ordering = ordering })
			eventually(t, func() bool {
				if batch := claim(t, c, source.Exclusion{}); batch != nil {
					settleAs(t, batch, outcomes{2: refused(0)})
				}
				return db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`) == 1 && entries(t, db) != ""
			})
			expect(t, "claimed", pendingIDs(t, claimer(db.Pool, func(o *source.Options) { o.Ordering = ordering })), []int64(nil))
			batch := claimHeld(t, c)
			expect(t, "held", sequences(batch), []int64{2})
			settle(t, batch, all)
			expect(t, "entries", entries(t, db), "")
		})
	}
}

func TestOrderingNoneHoldsBackRows(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'a'), ('t', 'a'), ('t', 'a')`)
	c := claimer(db.Pool, func(o *source.Options) { o.Ordering = source.OrderNone })
	batch := claim(t, c, source.Exclusion{})
	if err := batch.Settle(t.Context(), []source.Outcome{refused(0), {Verdict: source.Published}, refused(0)}); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'a')`)
	expect(t, "others of the key", pendingIDs(t, c), []int64{4})
	// Somebody has the first one locked: that says nothing about the second.
	tx := begin(t, db)
	execTx(t, tx, `SELECT FROM outbox WHERE id = 1 FOR UPDATE`)
	if batch := claimHeld(t, c); batch != nil {
		settle(t, batch, all)
	}
	commit(t, tx)
	db.Exec(t, `UPDATE outbox_parked SET next_retry_at = now()`)
	drainHeld(t, db, c)
	expect(t, "pending", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`), 0)
}

func TestTotalOrderHoldsBackEverything(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'k' || i FROM generate_series(1, 6) i`)
	total := func(o *source.Options) { o.Ordering = source.OrderTotal }
	c, other := claimer(db.Pool, total), claimer(db.Pool, total)
	batch := claim(t, c, source.Exclusion{})
	if err := batch.Settle(t.Context(), []source.Outcome{{Verdict: source.Published}, refused(0), {}, {}, {}, {}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*source.Claimer{other, c} {
		expect(t, "claimed", pendingIDs(t, c), []int64(nil))
	}
	batch = claimHeld(t, other)
	expect(t, "held", sequences(batch), []int64{2})
	if batch := claimHeld(t, c); batch != nil {
		t.Errorf("%v is claimed twice", sequences(batch))
	}
	settleAs(t, batch, outcomes{2: {Verdict: source.Dead, Attempts: 2, Reason: "r", Error: "e"}})
	expect(t, "entries", entries(t, db), "2 draining 1") // relays that order by key may have more of its key
	expect(t, "afterwards", pendingIDs(t, c), []int64{3, 4, 5, 6})
	drainHeld(t, db, c)
}

func TestTwoTotalOrdersDoNotHinderEachOther(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'k')`)
	claimers := make([]*source.Claimer, 4)
	for i := range claimers {
		claimers[i] = claimer(db.Pool, func(o *source.Options) { o.Ordering = source.OrderTotal })
	}
	for range 50 {
		batches := make([]source.Batch, len(claimers))
		var wait sync.WaitGroup
		for i, c := range claimers {
			wait.Go(func() {
				var err error
				if batches[i], err = c.Claim(context.Background(), source.Exclusion{}); err != nil && !source.IsTransient(err) {
					t.Error(err)
				}
			})
		}
		wait.Wait()
		n := 0
		for _, batch := range batches {
			if batch != nil {
				n++
				batch.Release()
			}
		}
		if n != 1 {
			t.Fatalf("%d of %d claims at the same time have the rows, want one", n, len(claimers))
		}
	}
}

func TestHeadThatIsGoneLetsItsKeyGoOn(t *testing.T) {
	for name, sql := range map[string]string{
		"cancelled": `DELETE FROM outbox WHERE id = 1`,
		"marked":    `UPDATE outbox SET published_at = now() WHERE id = 1`,
		"put off":   `UPDATE outbox SET available_at = now() + interval '1 hour' WHERE id = 1`,
	} {
		t.Run(name, func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'a'), ('t', 'a'), ('t', NULL)`)
			c := claimer(db.Pool, nil)
			eventually(t, func() bool {
				if batch := claim(t, c, source.Exclusion{}); batch != nil {
					settleAs(t, batch, outcomes{1: refused(0), 3: refused(0)})
				}
				return db.Int(t, `SELECT count(*) FROM outbox_parked`) == 2
			})
			db.Exec(t, sql)
			expect(t, "drained", drainHeld(t, db, c), []int64{3, 2})
		})
	}
}

func TestLockedHeadIsNotGone(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'a'), ('t', 'a')`)
	c := claimer(db.Pool, nil)
	settleAs(t, claim(t, c, source.Exclusion{}), outcomes{1: refused(0)})
	tx := begin(t, db)
	execTx(t, tx, `SELECT FROM outbox WHERE id = 1 FOR UPDATE`)
	for range 3 {
		if batch := claimHeld(t, c); batch != nil {
			t.Errorf("claimed %v", sequences(batch))
		}
		expect(t, "entries", entries(t, db), "1 retrying 1")
	}
	commit(t, tx)
	expect(t, "drained", drainHeld(t, db, c), []int64{1, 2})
}

func TestLaterMessageOfADrainedKeyIsRefused(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'a' FROM generate_series(1, 6)`)
	c := claimer(db.Pool, nil)
	settleAs(t, claim(t, c, source.Exclusion{}), outcomes{1: {Verdict: source.Parked, Reason: "r", Error: "e"}})
	settle(t, claimHeld(t, c), all)
	// A row of it is locked by somebody else: what is behind has to wait.
	tx := begin(t, db)
	execTx(t, tx, `SELECT FROM outbox WHERE id = 3 FOR UPDATE`)
	batch := claimHeld(t, c)
	expect(t, "drained", sequences(batch), []int64{2})
	settle(t, batch, all)
	if batch := claimHeld(t, c); batch != nil {
		t.Errorf("claimed %v", sequences(batch))
	}
	commit(t, tx)
	eventually(t, func() bool { batch = claimHeld(t, c); return batch != nil })
	expect(t, "drained", sequences(batch), []int64{3, 4, 5, 6})
	settleAs(t, batch, outcomes{4: refused(0)})
	expect(t, "entries", entries(t, db), "4 retrying 1")
	expect(t, "of another failure", db.Int(t, `SELECT count(*) FROM outbox_parked p JOIN outbox o USING (id, message_id) WHERE p.parked_at IS NULL`), 1)
	expect(t, "drained", drainHeld(t, db, c), []int64{4, 5, 6})
}

func TestReleasedHeldBatchChangesNothing(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'a'), ('t', 'b')`)
	c := claimer(db.Pool, nil)
	eventually(t, func() bool {
		if batch := claim(t, c, source.Exclusion{}); batch != nil {
			settleAs(t, batch, outcomes{1: refused(0), 2: refused(0)})
		}
		return db.Int(t, `SELECT count(*) FROM outbox_parked`) == 2
	})
	claimHeld(t, c).Release()
	expect(t, "entries", entries(t, db), "1 retrying 1, 2 retrying 1")
	// What is given back waits for a while, and counts nothing.
	batch := claimHeld(t, c)
	settleAs(t, batch, outcomes{1: {RetryIn: time.Hour}, 2: {RetryIn: time.Hour}})
	expect(t, "entries", entries(t, db), "1 retrying 1, 2 retrying 1")
	if batch := claimHeld(t, c); batch != nil {
		t.Errorf("claimed %v", sequences(batch))
	}
}

func TestExclusionKeepsHeldBackMessages(t *testing.T) {
	for _, test := range []struct {
		name    string
		exclude source.Exclusion
		heads   []int64
		drained []int64
	}{
		{"nothing", source.Exclusion{}, []int64{1, 2, 3}, []int64{4, 5}},
		{"topic", holding(func(r *source.Row) bool { return r.Topic == "mail" }), []int64{3}, []int64{5}},
		{"key", holding(func(r *source.Row) bool { return r.Topic == "mail" && string(r.Key) == "a" }), []int64{2, 3}, []int64{5}},
		{"id", holding(func(r *source.Row) bool { return r.ID == 3 || r.ID == 5 }), []int64{1, 2}, []int64{4}},
	} {
		t.Run(test.name, func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			db.Exec(t, `INSERT INTO outbox (topic, key, type) VALUES ('mail', 'a', 'Sent'), ('mail', 'b', 'Read'), ('orders', 'c', 'Sent')`)
			c := claimer(db.Pool, nil)
			eventually(t, func() bool {
				if batch := claim(t, c, source.Exclusion{}); batch != nil {
					settleAs(t, batch, outcomes{1: refused(0), 2: refused(0), 3: refused(0)})
				}
				return db.Int(t, `SELECT count(*) FROM outbox_parked`) == 3
			})
			batch := claimHeldBut(t, c, test.exclude)
			expect(t, "heads", sequences(batch), test.heads)
			batch.Release()

			db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('mail', 'a'), ('orders', 'c')`)
			settle(t, claimHeld(t, c), all)
			expect(t, "draining", db.Int(t, `SELECT count(*) FROM outbox_parked WHERE state = 'draining'`), 3)
			batch = claimHeldBut(t, c, test.exclude)
			expect(t, "drained", sequences(batch), test.drained)
		})
	}
}

func TestRefusalsThatCannotBeRecordedKeepTheMarks(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'a'), ('t', 'a')`, `ALTER TABLE outbox_parked ADD CHECK (id < 0)`)
	c := claimer(db.Pool, nil)
	batch := claim(t, c, source.Exclusion{})
	err := batch.Settle(t.Context(), []source.Outcome{{Verdict: source.Published}, refused(0)})
	if _, ok := errors.AsType[*source.UnrecordedError](err); !ok {
		t.Errorf("got %v, want an UnrecordedError", err)
	}
	expect(t, "pending", db.Int(t, `SELECT min(id) FROM outbox WHERE published_at IS NULL`), 2)
	expect(t, "claimed again", pendingIDs(t, c), []int64{2})
}

// An operator's transaction that holds an entry may last; the marks do not wait
// for it as long as settling may take.
func TestEntryThatAnOperatorHoldsDoesNotCostTheMarks(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'a'), ('t', 'a')`)
	c := claimer(db.Pool, nil)
	batch := claim(t, c, source.Exclusion{})
	operator, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = operator.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := operator.Exec(t.Context(), `LOCK TABLE outbox_parked IN EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	err = batch.Settle(t.Context(), []source.Outcome{{Verdict: source.Published}, refused(0)})
	if _, ok := errors.AsType[*source.UnrecordedError](err); !ok {
		t.Errorf("got %v, want an UnrecordedError", err)
	}
	expect(t, "pending", db.Int(t, `SELECT min(id) FROM outbox WHERE published_at IS NULL`), 2)
}

func TestHeadersThatAreNoObjectRefuseTheirRow(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `ALTER TABLE outbox DROP CONSTRAINT outbox_headers_are_strings`,
		`INSERT INTO outbox (topic, key, headers) SELECT 't', 'a', x FROM unnest('{"{}", "[1]", "null", "{\"a\": \"b\"}"}'::jsonb[]) x`)
	batch := claim(t, claimer(db.Pool, nil), source.Exclusion{})
	messages := batch.Messages()
	if len(messages) != 4 {
		t.Fatalf("got %d messages, want 4", len(messages))
	}
	for i, want := range []bool{false, true, true, false} {
		err := batch.Refused(i)
		if (err != nil) != want || want && (sinks.ScopeOf(err) != sinks.ScopeMessage || !sinks.IsPermanent(err) || sinks.ReasonOf(err) != "headers") {
			t.Errorf("message %d: %v", i, err)
		}
	}
	expect(t, "headers", messages[3].Headers, []sinks.Header{{Name: "a", Value: "b"}})
}

// Very many that are due are few claims, and they are bounded.
func TestManyHeldBackMessagesAreClaimedTogether(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'k' || i % 300 FROM generate_series(1, 1500) i`,
		`INSERT INTO outbox_parked (id, message_id, topic, key, state, attempts, reason, error) SELECT id, message_id, topic, key, 'retrying', 1, 'r', 'e' FROM outbox WHERE id <= 300`)
	c := claimer(db.Pool, func(o *source.Options) { o.BatchSize = 100 })
	last := map[string]int64{}
	claims, rows := 0, 0
	eventually(t, func() bool {
		if batch := claimHeld(t, c); batch != nil {
			claims++
			if n := len(batch.Messages()); n > 100 {
				t.Fatalf("%d messages in a batch of 100", n)
			}
			for _, m := range batch.Messages() {
				rows++
				if m.Sequence <= last[string(m.Key)] {
					t.Errorf("key %s: %d after %d", m.Key, m.Sequence, last[string(m.Key)])
				}
				last[string(m.Key)] = m.Sequence
			}
			settle(t, batch, all)
		}
		return db.Int(t, `SELECT count(*) FROM outbox_parked`) == 0
	})
	expect(t, "rows", rows, 1500)
	if claims > 60 {
		t.Errorf("%d claims for 1,500 rows of 300 keys", claims)
	}
}

// A skip of all that is parked leaves as many entries that nothing waits behind.
// They do not wait for one another.
func TestEntriesWithNothingBehindThemGoAtOnce(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox_parked (id, message_id, topic, key, state, attempts, reason, error)
SELECT i, gen_random_uuid(), 't', 'k' || i, 'draining', 1, 'r', 'e' FROM generate_series(1, 60) i`)
	c := claimer(db.Pool, func(o *source.Options) { o.BatchSize = 10 })
	for left := int64(60); left > 0; {
		if batch := claimHeld(t, c); batch != nil {
			t.Fatalf("claimed %v", sequences(batch))
		}
		now := db.Int(t, `SELECT count(*) FROM outbox_parked`)
		if now >= left {
			t.Fatalf("%d entries were left, and then %d", left, now)
		}
		left = now
		if due, any := c.HeldDue(); !any || !due.IsZero() {
			t.Fatalf("%d entries are left, and the next claim is worth it from %v on (%v), not at once", left, due, any)
		}
		pendingIDs(t, c) // a look or a probe does not make it forget
	}
	if batch := claimHeld(t, c); batch != nil {
		t.Fatalf("claimed %v", sequences(batch))
	}
	if due, any := c.HeldDue(); any {
		t.Errorf("nothing is left, and the next claim is worth it from %v on", due)
	}
}

// Where rows were held back one by one, a key has more entries than one.
func TestKeyOfTwoEntriesAfterAnotherOrdering(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'a' FROM generate_series(1, 4)`,
		`INSERT INTO outbox_parked (id, message_id, topic, key, state, attempts, reason, error) SELECT id, message_id, topic, key, 'retrying', 1, 'r', 'e' FROM outbox WHERE id IN (1, 3)`)
	c := claimer(db.Pool, nil)
	expect(t, "other keys", pendingIDs(t, c), []int64(nil))
	batch := claimHeld(t, c)
	expect(t, "head", sequences(batch), []int64{1})
	settle(t, batch, all)
	batch = claimHeld(t, c)
	expect(t, "drained", sequences(batch), []int64{2, 3, 4})
	settleAs(t, batch, outcomes{3: refused(0)})
	expect(t, "entries", entries(t, db), "3 retrying 1")
	expect(t, "drained", drainHeld(t, db, c), []int64{3, 4})
}

// Keys that never run dry, in more shards than a claim takes, do not keep the
// others from going on.
func TestKeysThatNeverRunDryDoNotStarveOthers(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'k' || i % 64 FROM generate_series(1, 640) i`,
		`INSERT INTO outbox_parked (id, message_id, topic, key, state, attempts, reason, error)
SELECT -i, gen_random_uuid(), 't', 'k' || i, 'draining', 1, 'r', 'e' FROM generate_series(0, 63) i`)
	c := claimer(db.Pool, func(o *source.Options) { o.BatchSize = 64 })
	got := map[string]bool{}
	for round := 0; len(got) < 64; round++ {
		if round == 300 {
			t.Fatalf("%d of 64 keys went on", len(got))
		}
		batch := claimHeld(t, c)
		if batch == nil {
			continue
		}
		for _, m := range batch.Messages() {
			got[string(m.Key)] = true
			db.Exec(t, fmt.Sprintf(`INSERT INTO outbox (topic, key) VALUES ('t', '%s')`, m.Key))
		}
		settle(t, batch, all)
	}
}

// What comes while the last rows that waited are published is nothing that
// waits: a key that is never idle is drained all the same.
func TestDrainEndsWithTheRowsThatWaited(t *testing.T) {
	for _, test := range []struct {
		name string
		size int
		as   outcomes
		want string
	}{
		{"all published", 100, nil, ""},
		{"one given up", 100, outcomes{4: {Verdict: source.Dead, Attempts: 1, Reason: "r", Error: "e"}}, ""},
		{"one in the middle given up", 100, outcomes{3: {Verdict: source.Dead, Attempts: 1, Reason: "r", Error: "e"}}, "1 draining 1"},
		{"one given back", 100, outcomes{4: {}}, "1 draining 1"},
		{"one refused", 100, outcomes{4: refused(0)}, "4 retrying 1"},
		{"more than a batch", 3, nil, "1 draining 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'a' FROM generate_series(1, 4)`)
			c := claimer(db.Pool, func(o *source.Options) { o.BatchSize = test.size })
			settleAs(t, claim(t, c, source.Exclusion{}), outcomes{1: refused(0)})
			settle(t, claimHeld(t, c), all)
			batch := claimHeld(t, c)
			db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'a')`)
			settleAs(t, batch, test.as)
			expect(t, "entries", entries(t, db), test.want)
			if test.want == "" {
				expect(t, "claimed by all", pendingIDs(t, c), []int64{5})
			}
		})
	}
}
