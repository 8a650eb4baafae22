package consume

import (
	"bytes"
	"context"
	"database/sql"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
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

// TestMaintainPrunes: a pool of one connection cannot, which is told at once; and
// nothing runs any more when Maintain returns.
func TestMaintainPrunes(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	db := sql.OpenDB(nil)
	db.SetMaxOpenConns(1)
	for name, config := range map[string]Config{
		"pgx":          {DB: newDatabase(t, 1)},
		"database/sql": {SQL: db},
	} {
		for _, prune := range []bool{false, true} {
			log.Reset()
			config.Inbox, config.KeepPruned, config.Logger = &inbox.Inbox{Consumer: "billing"}, prune, logger
			New(config).Maintain(ctx)
			if told := strings.Contains(log.String(), "cannot be pruned"); told != prune {
				t.Errorf("%s, KeepPruned %v: logged %q", name, prune, &log)
			}
		}
	}
	bad := Config{KeepPruned: true, DB: (*pgx.Conn)(nil)}
	if err := bad.Check(); err == nil || !strings.Contains(err.Error(), "KeepPruned: needs") {
		t.Errorf("a connection is taken to prune by: %v", err)
	}
}
