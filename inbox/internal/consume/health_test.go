package consume

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/internal/pgtest"
)

// told notes what is told of the database.
type told struct {
	inbox.Unobserved
	all []bool
}

func (o *told) DatabaseUp(_ string, up bool) { o.all = append(o.all, up) }

// TestNoConnectionIsNoOutage: handlers that take longer than a question to the
// database waits have all of the pool's connections.
func TestNoConnectionIsNoOutage(t *testing.T) {
	config, err := pgxpool.ParseConfig(pgtest.New(t).URL)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 1
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	var log bytes.Buffer
	observer := &told{}
	r := New(Config{Inbox: &inbox.Inbox{Consumer: "billing", Observer: observer}, DB: pool, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	handler, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.look(t.Context()) // which takes as long as a ping may
	handler.Release()
	if len(observer.all) != 0 || log.Len() != 0 {
		t.Errorf("a pool in use is an outage: told %v, logged %s", observer.all, &log)
	}
	r.look(t.Context())
	if len(observer.all) != 1 || !observer.all[0] {
		t.Errorf("told %v, want that the database is up", observer.all)
	}
	pool.Close()
	r.health.used = r.health.used.Add(-watchInterval)
	r.look(t.Context())
	if len(observer.all) != 2 || observer.all[1] {
		t.Errorf("told %v, want that it is away", observer.all)
	}
}
