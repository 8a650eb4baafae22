package source_test

import (
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

// writeCounter counts what is sent: a request, or a pipeline of them, each time.
type writeCounter struct {
	net.Conn
	writes atomic.Int64
}

func (c *writeCounter) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// TestRoundTrips counts what asks the server for an answer: at light load little
// else costs anything. It looks at the busiest connection, since the flush barrier
// has one of its own, and takes the least of some rounds, since looks come on top
// at times.
func TestRoundTrips(t *testing.T) {
	for _, test := range []struct {
		ordering source.Ordering
		want     []int
	}{
		{source.OrderKey, []int{1, 1, 2, 1, 1, 2}},
		{source.OrderTotal, []int{1, 1, 2, 1, 1, 2}},
		{source.OrderNone, []int{1, 1, 2, 2, 1, 1}}, // it has nothing to ask first
	} {
		t.Run(string(test.ordering), func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			var conns []*writeCounter
			var mutex sync.Mutex // the pool may connect in the background
			config := db.Pool.Config()
			dial := config.ConnConfig.DialFunc
			config.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := dial(ctx, network, address)
				counter := &writeCounter{Conn: conn}
				mutex.Lock()
				defer mutex.Unlock()
				conns = append(conns, counter)
				return counter, err
			}
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			c := claimer(pool, func(o *source.Options) { o.Ordering = test.ordering })
			var batch source.Batch
			trips := func(step func()) int {
				mutex.Lock()
				for _, conn := range conns {
					conn.writes.Store(0)
				}
				mutex.Unlock()
				step()
				mutex.Lock()
				defer mutex.Unlock()
				most := int64(0)
				for _, conn := range conns {
					most = max(most, conn.writes.Load())
				}
				return int(most)
			}
			next := func(rows int) func() {
				return func() {
					t.Helper()
					batch = claim(t, c, source.Exclusion{})
					expect(t, "rows", len(sequences(batch)), rows)
				}
			}
			finish := func() { settle(t, batch, all) }
			insert := func() { db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'k')`) }
			least := slices.Repeat([]int{1 << 10}, len(test.want))
			for range 5 {
				var counts []int
				insert()
				counts = append(counts, trips(next(1))) // after one with rows
				counts = append(counts, trips(finish))  // marks and commits
				counts = append(counts, trips(next(0))) // nothing is there
				counts = append(counts, trips(next(0))) // nor now
				insert()
				c.Notified()
				counts = append(counts, trips(next(1))) // announced, after an empty one
				finish()
				next(0)()
				insert()
				counts = append(counts, trips(next(1))) // unannounced, after an empty one
				finish()
				for i, n := range counts {
					least[i] = min(least[i], n)
				}
			}
			if !slices.Equal(least, test.want) {
				t.Errorf("round trips %v, want %v", least, test.want)
			}
		})
	}
}
