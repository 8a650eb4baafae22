package source

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/outboxrelay/relay/internal/pgtest"
)

// What the server sums up of walks, with the entries hashed or probed, is what their
// rows say one by one.
func TestSumsAreOfTheRows(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key, type)
SELECT 't' || i % 3 + 1, CASE WHEN i % 5 > 0 THEN 'k' || i % 13 END, 'y' || i % 2 + 1 FROM generate_series(1, 3000) i`)
	// Some keys have an entry that waits, some one that drains, some both.
	for _, state := range []string{"parked", "retrying", "draining"} {
		db.Exec(t, fmt.Sprintf(`INSERT INTO outbox_parked (id, message_id, topic, key, state, attempts, reason, error, first_failed_at, last_failed_at, parked_at, next_retry_at)
SELECT o.id, o.message_id, o.topic, o.key, '%[1]s', 1, 'r', 'e', now(), now(), CASE WHEN '%[1]s' = 'parked' THEN now() END, now() FROM outbox o
WHERE o.id IN (SELECT id FROM outbox ORDER BY random() LIMIT 25) ON CONFLICT DO NOTHING`, state))
	}
	conn, err := pgconn.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	run := func(sql string, parameters [][]byte) *pgconn.Result {
		t.Helper()
		result := conn.ExecParams(t.Context(), sql, parameters, nil, nil, nil).Read()
		if result.Err != nil {
			t.Fatalf("%v in %s", result.Err, sql)
		}
		return result
	}
	for _, filter := range []func(topic, typ string) string{nil, func(topic, typ string) string { return topic + " <> 't2' OR " + typ + " = 'y1'" }} {
		for _, ordering := range []Ordering{OrderKey, OrderNone} {
			c := NewClaimer(db.Pool, Options{
				Schema: "public", Table: "outbox", Ordering: ordering, OnPublished: Mark, BatchSize: 100, PublishTimeout: time.Second,
				Pipeline: "p", Filter: filter,
			})
			defer c.Close()
			var shards, rows []int
			var floors []int64
			for shard := range Shards {
				shards, rows, floors = append(shards, shard), append(rows, 1+rand.IntN(200)), append(floors, rand.Int64N(3000))
			}
			parameters := [][]byte{intArray(shards), idArray(floors), intArray(rows)}
			one, err := c.walked(run(c.looks.walk, parameters), &Exclusion{})
			if err != nil {
				t.Fatal(err)
			}
			want := sum(Shards, one)
			if !slices.ContainsFunc(one, func(w walked) bool { return w.leftOut }) || ordering == OrderKey && !slices.ContainsFunc(one, func(w walked) bool { return w.draining }) {
				t.Error("no row waits, or none drains: the test shows nothing")
			}
			for name, sql := range map[string]string{"hashed": c.looks.sum, "probed": c.looks.sumOfMany} {
				got, err := summed(Shards, run(sql, parameters))
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(got, want) {
					t.Errorf("%s, %s, filter %t: %v, want %v", ordering, name, filter != nil, got, want)
				}
			}
		}
	}
}
