package consume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/migrations"
)

func newDatabase(t *testing.T, connections int32) *pgxpool.Pool {
	t.Helper()
	db := pgtest.New(t)
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := (migrations.Target{Schema: "public", Table: "inbox", Set: migrations.Inbox}).Apply(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
	config, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = connections
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// TestOrderOfKeys has random messages fail at random, alone and in batches, with
// several workers: each has one effect, those of a key in their order, also with
// what failed among them; and IDOf is called once for each message.
func TestOrderOfKeys(t *testing.T) {
	for _, batches := range []bool{false, true} {
		t.Run(fmt.Sprintf("batches=%v", batches), func(t *testing.T) {
			const count, keys = 1000, 9
			var mu sync.Mutex
			identified := make(map[int64]int)
			done := make(map[string][]int64)
			config := Config{
				Inbox: &inbox.Inbox{Consumer: "tests", IDOf: func(m inbox.Message) (inbox.ID, error) {
					mu.Lock()
					defer mu.Unlock()
					identified[m.Sequence]++
					return inbox.IDFrom(inbox.ID{1}, fmt.Sprint(m.Sequence)), nil
				}},
				DB: newDatabase(t, 4), Concurrency: 4, BatchSize: 20, MaxAttempts: 1000, BreakerThreshold: -1,
				Backoff: Backoff{Initial: time.Millisecond, Max: 3 * time.Millisecond}.WithDefaults(), Logger: slog.New(slog.DiscardHandler),
			}
			handle := func(fresh []inbox.Message) error {
				for _, m := range fresh {
					switch n := rand.IntN(60); {
					case n == 0:
						return &pgconn.PgError{Code: "55P03"}
					case n == 1:
						return &pgconn.PgError{Code: "57P01"}
					case n == 2:
						return errors.New("no such customer")
					case n < 6 && m.Key != nil && m.Key[0] == 0:
						return errors.New("a key that fails more often")
					}
				}
				return nil
			}
			if batches {
				config.BatchHandler = func(_ context.Context, _ pgx.Tx, fresh []inbox.Message) error { return handle(fresh) }
			} else {
				config.Handler = func(_ context.Context, _ pgx.Tx, m inbox.Message) error { return handle([]inbox.Message{m}) }
			}
			ctx, cancel := context.WithCancel(t.Context())
			q := New(config).NewQueue(ctx, config.Logger)
			left := count
			q.Acknowledge = func(items ...*Item) {
				mu.Lock()
				defer mu.Unlock()
				for _, item := range items {
					done[string(item.Key)] = append(done[string(item.Key)], item.Sequence)
					if left--; left == 0 {
						cancel()
					}
				}
			}
			var running sync.WaitGroup
			running.Go(func() { q.Run(context.WithoutCancel(ctx)) })
			for n := range count {
				item := &Item{Message: inbox.Message{Topic: "orders", Sequence: int64(n + 1)}}
				if key := n % keys; key != 1 {
					item.Key = []byte{byte(key)}
				}
				q.Add(item)
			}
			running.Wait()
			if left != 0 {
				t.Errorf("%d messages are left", left)
			}
			for key, sequences := range done {
				for n := range len(sequences) - 1 {
					if key != "" && sequences[n] > sequences[n+1] {
						t.Errorf("key %x: %d before %d", key, sequences[n], sequences[n+1])
					}
				}
			}
			for sequence, calls := range identified {
				if calls != 1 {
					t.Errorf("message %d was identified %d times", sequence, calls)
				}
			}
			if len(q.streams) != 0 || len(q.ready) != 0 {
				t.Errorf("%d streams and %d ready ones are left", len(q.streams), len(q.ready))
			}
		})
	}
}

// TestSignature tells what failures have in common.
func TestSignature(t *testing.T) {
	for _, test := range []struct {
		a, b  error
		alike bool
	}{
		{errors.New(`order 4711 of customer "Ann" has no stock`), errors.New(`order 12 of customer "Bob O'Neill" has no stock`), true},
		{errors.New("GET http://stock:8080/items/7: 503"), errors.New("GET http://stock:8080/items/12345: 502"), true},
		{errors.New("4bf92f35-77b3-4da6-a3ce-929d0e0e4736: gone"), errors.New("00f067aa-0ba9-02b7-77b3-929d0e0e4736: gone"), true},
		{errors.New("no stock"), errors.New("no address"), false},
		{&pgconn.PgError{Code: "23503", Message: "a"}, fmt.Errorf("insert: %w", &pgconn.PgError{Code: "23503", Message: "b"}), true},
		{&pgconn.PgError{Code: "23503", Message: "a"}, &pgconn.PgError{Code: "23505", Message: "a"}, false},
		{&Error{err: errors.New("a"), stage: stage{timeout: true}}, &Error{err: errors.New("b"), stage: stage{timeout: true}}, true},
	} {
		if alike := signature(test.a) == signature(test.b); alike != test.alike {
			t.Errorf("%v and %v: alike %v, want %v; signatures %q and %q", test.a, test.b, alike, test.alike, signature(test.a), signature(test.b))
		}
	}
}
