package source_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

// The interleavings of this file are of a key that is held back here while the
// floors of another relay rise over what waits behind it.

// park makes row 1, of the key late, wait.
func park(t *testing.T, db *pgtest.Database, c *source.Claimer) {
	t.Helper()
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'late')`)
	settleAs(t, claim(t, c, source.Exclusion{}), outcomes{1: refused(0)})
}

// rise lets a relay publish so much that its floors rise, and returns what of
// the key late was part of that.
func rise(t *testing.T, db *pgtest.Database, c *source.Claimer) (ids []int64) {
	t.Helper()
	for range 4 {
		fill(t, db, 500)
		for batch := claim(t, c, source.Exclusion{}); batch != nil; batch = claim(t, c, source.Exclusion{}) {
			ids = append(ids, lateOf(batch)...)
			settle(t, batch, all)
		}
		betweenQuestions()
	}
	return ids
}

// lateOf are the messages of the key late in a batch, in order.
func lateOf(batch source.Batch) (ids []int64) {
	for _, m := range batch.Messages() {
		if string(m.Key) == "late" {
			ids = append(ids, m.Sequence)
		}
	}
	return ids
}

// late publishes everything there is, held back or not, until n rows of the key
// were seen, and returns their order.
func late(t *testing.T, n int, got []int64, claimers ...*source.Claimer) []int64 {
	t.Helper()
	eventually(t, func() bool {
		for _, c := range claimers {
			if batch := claimHeld(t, c); batch != nil {
				got = append(got, lateOf(batch)...)
				settle(t, batch, all)
			}
			if batch := claim(t, c, source.Exclusion{}); batch != nil {
				got = append(got, lateOf(batch)...)
				settle(t, batch, all)
			}
		}
		return len(got) >= n
	})
	return got
}

func insertLate(t *testing.T, db *pgtest.Database) {
	t.Helper()
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'late')`)
}

// What waits lies below the other relay's floors when its key goes on.
func TestRowsThatWaitedAreNotPassed(t *testing.T) {
	for _, end := range []string{"published", "dead", "cancelled", "skipped by an operator"} {
		t.Run(end, func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			here, elsewhere := claimer(db.Pool, nil), claimer(db.Pool, nil)
			park(t, db, here)
			for range 3 {
				insertLate(t, db)
				rise(t, db, elsewhere)
			}
			switch end {
			case "published":
				settle(t, claimHeld(t, here), all)
			case "dead":
				settleAs(t, claimHeld(t, here), outcomes{1: {Verdict: source.Dead, Attempts: 2, Reason: "r", Error: "e"}})
			case "cancelled":
				db.Exec(t, `DELETE FROM outbox WHERE id = 1`)
			default:
				db.Exec(t, `UPDATE outbox_parked SET state = 'draining', next_retry_at = now()`, `DELETE FROM outbox WHERE id = 1`)
			}
			insertLate(t, db)
			// The other relay sees the last one, and may not have it.
			got := rise(t, db, elsewhere)
			expectSorted(t, late(t, 4, got, elsewhere, here))
			insertLate(t, db)
			insertLate(t, db)
			expectSorted(t, late(t, 2, nil, elsewhere, here))
			expect(t, "pending", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`), 0)
		})
	}
}

// A row that commits after the drain's last look must not be passed by one that
// commits when the entry is gone.
func TestRowThatCommitsWhileItsKeyDrainsIsNotPassed(t *testing.T) {
	// commits says when the late row does.
	for _, commits := range []string{"parked", "draining", "last look", "entry gone"} {
		t.Run(commits, func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			here, elsewhere := claimer(db.Pool, nil), claimer(db.Pool, nil)
			park(t, db, here)
			// Another key drains, so that the claim that finds nothing more of the
			// key has a batch, and its commit can be put off.
			db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'other'), ('t', 'other')`,
				`INSERT INTO outbox_parked (id, message_id, topic, key, state, attempts, reason, error) SELECT id, message_id, topic, key, 'retrying', 1, 'r', 'e' FROM outbox WHERE id = 2`)
			tx := begin(t, db)
			execTx(t, tx, `INSERT INTO outbox (topic, key) VALUES ('t', 'late')`)
			var got []int64
			at := func(when string) {
				if commits == when {
					commit(t, tx)
				}
				got = append(got, rise(t, db, elsewhere)...)
			}
			at("parked")
			batch := claimHeld(t, here)
			expect(t, "heads", sequences(batch), []int64{1, 2})
			settle(t, batch, all)
			at("draining")
			batch = claimHeld(t, here)
			got = append(got, lateOf(batch)...)
			at("last look")
			settle(t, batch, all)
			if commits == "entry gone" {
				commit(t, tx)
			}
			insertLate(t, db)
			expectSorted(t, late(t, 2, got, elsewhere, here))
		})
	}
}

// The other way round: a floor rises over nothing that only waits for its
// writer, however long a key is parked.
func TestFloorsRiseOverWhatWaitsOnlyWhenItIsComplete(t *testing.T) {
	db := pgtest.NewOutbox(t)
	here, elsewhere := claimer(db.Pool, nil), claimer(db.Pool, nil)
	park(t, db, here)
	tx := begin(t, db)
	execTx(t, tx, `INSERT INTO outbox (topic, key) VALUES ('t', 'late'), ('t', 'unrelated')`) // 2, 3
	rise(t, db, elsewhere)
	db.Exec(t, fmt.Sprintf(`DELETE FROM outbox WHERE id = %d`, 1))
	eventually(t, func() bool {
		if batch := claimHeld(t, here); batch != nil {
			t.Fatalf("claimed %v", sequences(batch))
		}
		return entries(t, db) == ""
	})
	rise(t, db, elsewhere)
	commit(t, tx)
	insertLate(t, db)
	got := late(t, 2, nil, elsewhere)
	expectSorted(t, got)
	if !slices.Contains(got, 2) {
		t.Errorf("published %v, want row 2 among them", got)
	}
}
