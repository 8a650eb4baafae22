package main

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/outbox"
)

// auditInterval is how much of its count a process takes along that is killed.
const auditInterval = 50 * time.Millisecond

// audit writes down how many duplicates the inbox refused, for the demo's
// tally. A service of yours needs no such thing.
type audit struct {
	pool  *pgxpool.Pool
	count func() int64
	// process tells this one's row from those of others.
	process  string
	recorded int64
	end      context.CancelFunc
	done     sync.WaitGroup
}

// newAudit begins to count; stop ends it.
func newAudit(pool *pgxpool.Pool, count func() int64) *audit {
	ctx, cancel := context.WithCancel(context.Background())
	a := &audit{pool: pool, count: count, process: outbox.NewUUID().String(), end: cancel}
	a.done.Go(func() {
		ticker := time.NewTicker(auditInterval)
		defer ticker.Stop()
		for ctx.Err() == nil {
			a.record(ctx)
			select {
			case <-ctx.Done():
			case <-ticker.C:
			}
		}
	})
	return a
}

// stop records the last count.
func (a *audit) stop() {
	a.end()
	a.done.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	a.record(ctx)
}

// record records the count if it changed. When that fails the next one does.
func (a *audit) record(ctx context.Context) {
	n := a.count()
	if n == a.recorded {
		return
	}
	_, err := a.pool.Exec(ctx, `INSERT INTO refusals (process, messages) VALUES ($1, $2)
		ON CONFLICT (process) DO UPDATE SET messages = excluded.messages`, a.process, n)
	if err == nil {
		a.recorded = n
	}
}
