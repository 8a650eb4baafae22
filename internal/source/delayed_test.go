package source_test

import (
	"slices"
	"testing"
	"time"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

func TestDelayedRowsKeepTheirOrderWhenAPassedWriterEnds(t *testing.T) {
	db := pgtest.NewOutbox(t)
	c := claimer(db.Pool, func(o *source.Options) { o.BatchSize = 100 })
	tx := begin(t, db)
	execTx(t, tx, `INSERT INTO outbox (topic, key) VALUES ('t', 'late')`)
	for began := time.Now(); time.Since(began) < 2*time.Second; betweenQuestions() {
		fill(t, db, 100)
		drain(t, c)
	}
	db.Exec(t, `INSERT INTO outbox (topic, key, available_at) SELECT 't', 'd', now() - interval '1 minute' FROM generate_series(1, 1000)`)
	var got []int64
	one := func() int {
		b, err := c.Claim(t.Context(), source.Exclusion{})
		if err != nil {
			if !source.IsTransient(err) {
				t.Fatal(err)
			}
			t.Log("transient:", err)
			return 0
		}
		if b == nil {
			time.Sleep(10 * time.Millisecond)
			return 0
		}
		n := 0
		for _, m := range b.Messages() {
			if string(m.Key) == "d" {
				got = append(got, m.Sequence)
				n++
			}
		}
		settle(t, b, all)
		return n
	}
	for one() == 0 {
	}
	commit(t, tx)
	for began := time.Now(); time.Since(began) < 4*time.Second && len(got) < 1000; {
		one()
	}
	if !slices.IsSorted(got) {
		for i := 1; i < len(got); i++ {
			if got[i] < got[i-1] {
				t.Errorf("at %d: %d after %d", i, got[i], got[i-1])
			}
		}
	}
	t.Log(len(got))
}

func TestDelayedRowsThatWereLeftOutComeFirstAgain(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key, available_at) SELECT 't', 'b', now() - interval '1 minute' FROM generate_series(1, 6)`)
	c := claimer(db.Pool, func(o *source.Options) { o.BatchSize = 2 })
	for range 2 {
		b := claim(t, c, holding(func(*source.Row) bool { return true }))
		t.Log("held claim", sequences(b))
	}
	e := source.Exclusion{Shrunk: 1}
	var got []int64
	for range 20 {
		if b := claim(t, c, e); b != nil {
			got = append(got, sequences(b)...)
			settle(t, b, all)
		} else {
			time.Sleep(100 * time.Millisecond)
		}
	}
	expect(t, "order", got, []int64{1, 2, 3, 4, 5, 6})
}

func TestDelayedRowThatWasLockedComesFirst(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key, available_at) SELECT 't', 'b', now() - interval '1 minute' FROM generate_series(1, 6)`)
	c := claimer(db.Pool, func(o *source.Options) { o.BatchSize = 2 })
	tx := begin(t, db)
	execTx(t, tx, `SELECT FROM outbox WHERE id = 1 FOR UPDATE`)
	b := claim(t, c, source.Exclusion{})
	t.Log("locked claim", sequences(b))
	commit(t, tx)
	time.Sleep(600 * time.Millisecond)
	var got []int64
	for range 20 {
		if b := claim(t, c, source.Exclusion{}); b != nil {
			got = append(got, sequences(b)...)
			settle(t, b, all)
		} else {
			time.Sleep(100 * time.Millisecond)
		}
	}
	expect(t, "order", got, []int64{1, 2, 3, 4, 5, 6})
}

func TestDelayedRowThatWasLockedComesFirstInATotalOrder(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key, available_at) SELECT 't', 'b', now() - interval '1 minute' FROM generate_series(1, 6)`)
	c := claimer(db.Pool, func(o *source.Options) { o.BatchSize = 2; o.Ordering = source.OrderTotal })
	tx := begin(t, db)
	execTx(t, tx, `SELECT FROM outbox WHERE id = 1 FOR UPDATE`)
	var got []int64
	for i := range 20 {
		if i == 10 {
			commit(t, tx)
		}
		if b := claim(t, c, source.Exclusion{}); b != nil {
			got = append(got, sequences(b)...)
			settle(t, b, all)
		} else {
			time.Sleep(50 * time.Millisecond)
		}
	}
	expect(t, "order", got, []int64{1, 2, 3, 4, 5, 6})
}

func TestListsOfDelayedRowsAreCutByID(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key, available_at) SELECT 't', 'k', now() - CASE i WHEN 1 THEN interval '1 minute' ELSE interval '1 hour' END FROM generate_series(1, 131073) i`)
	c := claimer(db.Pool, nil)
	b := claim(t, c, source.Exclusion{})
	if b == nil {
		b = claim(t, c, source.Exclusion{})
	}
	expect(t, "first", sequences(b)[0], 1)
}
