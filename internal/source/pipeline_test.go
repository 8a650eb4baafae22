package source_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

// pipelineOf returns the claimer of one of several pipelines.
func pipelineOf(db *pgtest.Database, name, filter string, change func(*source.Options)) *source.Claimer {
	return claimer(db.Pool, func(o *source.Options) {
		o.Pipeline = name
		o.Filter = func(topic, typ string) string { return fmt.Sprintf(filter, topic, typ) }
		if change != nil {
			change(o)
		}
	})
}

const (
	mailOnly  = `%[1]s LIKE 'mail.%%'`
	noMail    = `NOT (%[1]s LIKE 'mail.%%')`
	readOnly  = `%[2]s = 'Read'`
	otherType = `%[2]s <> 'Read'`
)

// claimAllOf claims and settles until nothing is left.
func claimAllOf(t *testing.T, c *source.Claimer) (ids []int64) {
	t.Helper()
	for range 20 {
		if batch := claim(t, c, source.Exclusion{}); batch != nil {
			ids = append(ids, sequences(batch)...)
			settle(t, batch, all)
		}
	}
	slices.Sort(ids)
	return ids
}

func TestPipelinesShareATable(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('mail.a', 'k'), ('orders', 'k'), ('mail.b', 'k'), ('orders', 'k')`)
	mail, orders := pipelineOf(db, "mail", mailOnly, nil), pipelineOf(db, "main", noMail, nil)
	// All rows are of one shard, and neither waits for the other.
	m, o := claim(t, mail, source.Exclusion{}), claim(t, orders, source.Exclusion{})
	expect(t, "mail", sequences(m), []int64{1, 3})
	expect(t, "orders", sequences(o), []int64{2, 4})
	// A second relay's, and one with a single pipeline for all, as older ones have, wait for both.
	if batch := claim(t, pipelineOf(db, "mail", mailOnly, nil), source.Exclusion{}); batch != nil {
		t.Errorf("claimed twice: %v", sequences(batch))
	}
	whole := claimer(db.Pool, nil)
	if batch := claim(t, whole, source.Exclusion{}); batch != nil {
		t.Errorf("claimed by a relay without pipelines, too: %v", sequences(batch))
	}
	settle(t, m, all)
	if batch := claim(t, whole, source.Exclusion{}); batch != nil {
		t.Errorf("claimed while one pipeline has the shard: %v", sequences(batch))
	}
	o.Release()
	batch := claim(t, whole, source.Exclusion{})
	expect(t, "afterwards", sequences(batch), []int64{2, 4})
	if batch := claim(t, orders, source.Exclusion{}); batch != nil {
		t.Errorf("claimed while a relay without pipelines has the shard: %v", sequences(batch))
	}
}

func TestPipelineFindsItsRowsBehindManyOthers(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 'mail.a', 'k' FROM generate_series(1, 5000) i`, // one shard
		`INSERT INTO outbox (topic, key) VALUES ('orders', 'k')`)
	orders := pipelineOf(db, "main", noMail, nil)
	eventually(t, func() bool {
		batch := claim(t, orders, source.Exclusion{})
		if batch == nil {
			return false
		}
		expect(t, "orders", sequences(batch), []int64{5001})
		settle(t, batch, all)
		return true
	})
	expect(t, "pending", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`), 5000)
}

// What waits behind a refused message is drained by whose it is.
func TestPipelinesDrainTheirOwn(t *testing.T) {
	for _, test := range []struct{ name, first, second, rows string }{
		{"by topic", mailOnly, noMail, `('mail.a', 'k', ''), ('orders', 'k', ''), ('mail.a', 'k', ''), ('orders', 'k', '')`},
		{"by type", readOnly, otherType, `('t', 'k', 'Read'), ('t', 'l', 'Sent'), ('t', 'k', 'Sent'), ('t', 'k', 'Read')`},
	} {
		t.Run(test.name, func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			db.Exec(t, `INSERT INTO outbox (topic, key, type) VALUES `+test.rows)
			first, second := pipelineOf(db, "first", test.first, nil), pipelineOf(db, "second", test.second, nil)
			eventually(t, func() bool {
				if batch := claim(t, first, source.Exclusion{}); batch != nil {
					settleAs(t, batch, outcomes{1: refused(0)})
				}
				return db.Int(t, `SELECT count(*) FROM outbox_parked`) == 1
			})
			if batch := claimHeld(t, second); batch != nil {
				t.Errorf("the other pipeline tries %v again", sequences(batch))
			}
			settle(t, claimHeld(t, first), all)
			claimAllOf(t, second)
			eventually(t, func() bool {
				for _, c := range []*source.Claimer{first, second} {
					if batch := claimHeld(t, c); batch != nil {
						settle(t, batch, all)
					}
				}
				db.Exec(t, `UPDATE outbox_parked SET next_retry_at = now()`)
				return db.Int(t, `SELECT count(*) FROM outbox_parked`) == 0
			})
			expect(t, "pending", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`), 0)
		})
	}
}

func TestMoreThanFourBatchesAreUnderWay(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'k' || i FROM generate_series(1, 2000) i`)
	c := claimer(db.Pool, func(o *source.Options) { o.BatchSize, o.Workers = 10, 12 })
	for n := range 12 {
		if claim(t, c, source.Exclusion{}) == nil {
			t.Fatalf("nothing is claimed beside %d batches", n)
		}
	}
}

// Floors pass a transaction that stays open; when it commits, its row comes before the later ones of its key.
func TestWriterThatWasPassedIsNotOvertaken(t *testing.T) {
	for _, how := range []string{"commit", "savepoint", "prepared"} {
		t.Run(how, func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			if how == "prepared" && db.Int(t, `SELECT current_setting('max_prepared_transactions')::int`) == 0 {
				t.Skip("the server has max_prepared_transactions = 0; `make test` provides one with more")
			}
			c := claimer(db.Pool, func(o *source.Options) { o.BatchSize = 1000 })
			tx := begin(t, db)
			if how == "savepoint" {
				execTx(t, tx, `SAVEPOINT s`)
			}
			execTx(t, tx, `INSERT INTO outbox (topic, key) VALUES ('t', 'late')`)
			end := func() { commit(t, tx) }
			if how == "prepared" {
				execTx(t, tx, `PREPARE TRANSACTION 'passed'`)
				end = func() { db.Exec(t, `COMMIT PREPARED 'passed'`) }
			}
			for began := time.Now(); time.Since(began) < 2*time.Second; betweenQuestions() {
				fill(t, db, 100)
				drain(t, c)
			}
			expect(t, "published meanwhile", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`), 0)
			end()
			db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'late')`)
			expectSorted(t, lateRows(t, c))
		})
	}
}

// A refused message of one pipeline makes the entry its own; what another one has before it still comes first.
func TestEntryThatMovedPassesNobodysRows(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key, type) VALUES ('t','k','Read'),('t','k','Sent'),('t','k','Read'),('t','k','Sent')`)
	read, sent := pipelineOf(db, "read", readOnly, nil), pipelineOf(db, "sent", otherType, nil)
	b := claim(t, read, source.Exclusion{})
	t.Log("read claims", sequences(b))
	settleAs(t, b, outcomes{1: refused(0)})
	due := func() { db.Exec(t, `UPDATE outbox_parked SET next_retry_at = now()`) }
	due()
	b = claimHeld(t, read)
	t.Log("held read", sequences(b))
	settle(t, b, all) // 1 published, draining
	due()
	b = claimHeld(t, read)
	t.Log("held read drains", sequences(b))
	settleAs(t, b, outcomes{3: refused(0)})
	t.Log("entry id", db.Int(t, `SELECT id FROM outbox_parked`), "draining", db.Int(t, `SELECT count(*) FROM outbox_parked WHERE state='draining'`))
	due()
	b = claimHeld(t, read)
	t.Log("held read", sequences(b))
	settle(t, b, all)
	var got []int64
	for began := time.Now(); time.Since(began) < 4*time.Second; time.Sleep(20 * time.Millisecond) {
		due()
		for _, c := range []*source.Claimer{sent, read} {
			if b := claimHeld(t, c); b != nil {
				got = append(got, sequences(b)...)
				settle(t, b, all)
			}
			if b := claim(t, c, source.Exclusion{}); b != nil {
				got = append(got, sequences(b)...)
				settle(t, b, all)
			}
		}
	}
	expect(t, "order", got, []int64{2, 4})
	expect(t, "entries", db.Int(t, `SELECT count(*) FROM outbox_parked`), 0)
}
