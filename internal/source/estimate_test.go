package source_test

import (
	"testing"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

func TestEstimateIsExactForFewRows(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key, created_at) SELECT 'a', 'k' || i, now() - interval '1 hour' FROM generate_series(1, 100) i`)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 'b', 'k' || i FROM generate_series(1, 50) i`)
	db.Exec(t, `INSERT INTO outbox (topic, available_at) VALUES ('c', now() + interval '1 hour'), ('d', now() - interval '1 minute')`)
	db.Exec(t, `INSERT INTO outbox (topic, published_at) VALUES ('e', now())`)
	got, err := source.NewEstimator(db.Pool, "public", "outbox").Estimate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		topic    string
		pending  int64
		from, to float64
	}{{"a", 100, 3600, 3700}, {"b", 50, 0, 100}, {"d", 1, 60, 160}}
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i, w := range want {
		if g := got[i]; g.Topic != w.topic || g.Pending != w.pending || g.OldestAge < w.from || g.OldestAge > w.to {
			t.Errorf("got %+v, want %+v", g, w)
		}
	}
}

func TestEstimateOfManyRowsLooksAtFew(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT CASE i % 4 WHEN 0 THEN 'few' ELSE 'many' END, 'k' || i FROM generate_series(1, 200000) i`)
	db.Exec(t, `VACUUM ANALYZE outbox`)
	got, err := source.NewEstimator(db.Pool, "public", "outbox").Estimate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Topic != "few" || got[1].Topic != "many" {
		t.Fatalf("got %+v", got)
	}
	for i, want := range []int64{50_000, 150_000} {
		if n := got[i].Pending; n < want*8/10 || n > want*12/10 {
			t.Errorf("%s: estimated %d pending rows, there are %d", got[i].Topic, n, want)
		}
	}
}
