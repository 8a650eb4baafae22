package source_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

// newLog returns what tells where the server's log ends and how far it is on
// disk, from a database whose functions nobody touched.
func newLog(t *testing.T) func() (end, flushed uint64) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), os.Getenv(pgtest.Variable))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return func() (end, flushed uint64) {
		if err := conn.QueryRow(t.Context(), `SELECT pg_current_wal_insert_lsn() - '0/0', pg_current_wal_flush_lsn() - '0/0'`).Scan(&end, &flushed); err != nil {
			t.Fatal(err)
		}
		return end, flushed
	}
}

// replaced makes functions of the system's raise what managed servers do.
func replaced(code string, functions ...string) []string {
	statements := []string{`SET allow_system_table_mods = on`}
	for _, f := range functions {
		name, _, _ := strings.Cut(f, "(")
		statements = append(statements, `DELETE FROM pg_proc WHERE proname = '`+name+`'`)
		if code != "" {
			statements = append(statements, `CREATE FUNCTION pg_catalog.`+f+` RETURNS pg_lsn LANGUAGE plpgsql AS
				$$ BEGIN RAISE EXCEPTION 'wal_level must be set to ''logical''' USING ERRCODE = '`+code+`'; END $$`)
		}
	}
	return append(statements, `RESET allow_system_table_mods`)
}

const (
	insertLSN = `pg_current_wal_insert_lsn()`
	flushLSN  = `pg_current_wal_flush_lsn()`
	emit      = `pg_logical_emit_message(transactional boolean, prefix text, content text)`
)

// A managed server may refuse the functions of its log, and an owner may revoke
// them. What is published must be on disk all the same.
func TestFlushBarrierWithoutFunctions(t *testing.T) {
	revokeEmit := `DO $$ BEGIN EXECUTE (SELECT string_agg('REVOKE EXECUTE ON FUNCTION ' || p.oid::regprocedure || ' FROM PUBLIC', '; ') FROM pg_proc p WHERE p.proname = 'pg_logical_emit_message'); END $$`
	for name, test := range map[string]struct {
		prepare []string
		told    []string
	}{
		"all is allowed":        {nil, nil},
		"one is revoked":        {[]string{`REVOKE EXECUTE ON FUNCTION ` + insertLSN + ` FROM PUBLIC`}, []string{"positions"}},
		"the other is revoked":  {[]string{`REVOKE EXECUTE ON FUNCTION ` + flushLSN + ` FROM PUBLIC`}, []string{"positions"}},
		"wal_level":             {replaced("55000", insertLSN, flushLSN), []string{"positions"}},
		"not supported":         {replaced("0A000", insertLSN, flushLSN), []string{"positions"}},
		"missing":               {replaced("", insertLSN, flushLSN), []string{"positions"}},
		"no messages":           {[]string{revokeEmit}, []string{"a row instead"}},
		"nothing":               {append(replaced("55000", insertLSN, flushLSN, emit), revokeEmit), []string{"positions", "a row instead"}},
		"nothing, all revoked":  {[]string{revokeEmit, `REVOKE EXECUTE ON FUNCTION ` + insertLSN + `, ` + flushLSN + ` FROM PUBLIC`}, []string{"positions", "a row instead"}},
		"nothing, and no other": {replaced("", insertLSN, flushLSN, `pg_logical_emit_message`), []string{"positions", "a row instead"}},
	} {
		t.Run(name, func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			if len(test.prepare) > 0 {
				db.Exec(t, test.prepare...)
			}
			role := newRole(t, db)
			pool := poolOf(t, db.URL, role, func(c *pgxpool.Config) { c.MaxConns = 1 })
			var told bytes.Buffer
			barrier := source.NewBarrier(pool, "public", "outbox", slog.New(slog.NewTextHandler(&told, nil)))
			c := claimer(pool, func(o *source.Options) { o.Barrier = barrier })
			t.Cleanup(c.Close)
			log := newLog(t)
			behind := 0
			// What else the server does may flush the log in time.
			for i := 0; i < 20 || i < 1000 && told.Len() == 0 && len(test.told) > 0; i++ {
				db.Exec(t, `SET synchronous_commit = off`, `INSERT INTO outbox (topic, key) VALUES ('t', 'k')`, `RESET synchronous_commit`)
				end, flushed := log()
				if flushed < end {
					behind++
				}
				batch := claim(t, c, source.Exclusion{})
				if batch == nil {
					t.Fatal("nothing is claimed")
				}
				if _, flushed = log(); flushed < end {
					t.Errorf("row %d was claimed while the log was on disk up to %x, and it ends at %x", i, flushed, end)
				}
				settle(t, batch, all)
			}
			t.Logf("%d rows were not on disk when they were claimed", behind)
			for _, line := range test.told {
				expect(t, "lines about "+line, strings.Count(told.String(), line), 1)
			}
			expect(t, "lines", strings.Count(told.String(), "\n"), len(test.told))
			expect(t, "rows left in outbox_parked", db.Int(t, `SELECT count(*) FROM outbox_parked`), int64(0))
		})
	}
}

// What is revoked while a relay runs concerns one claim.
func TestFunctionsAreRefusedLater(t *testing.T) {
	db := pgtest.NewOutbox(t)
	role := newRole(t, db)
	c := claimer(poolOf(t, db.URL, role, nil), nil)
	t.Cleanup(c.Close)
	next := func() error {
		db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'k')`)
		batch, err := c.Claim(t.Context(), source.Exclusion{})
		if err == nil {
			settle(t, batch, all)
		}
		return err
	}
	if err := next(); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, `REVOKE EXECUTE ON FUNCTION pg_current_wal_insert_lsn() FROM PUBLIC`)
	failures := 0
	for range 3 {
		if err := next(); err != nil {
			failures++
		}
	}
	expect(t, "failures", failures, 1)
}

// countedPool is a pool that counts what its connections, and those made as they are,
// send.
func countedPool(t *testing.T, db *pgtest.Database, connects *atomic.Int64) (*pgxpool.Pool, func() []*writeCounter) {
	t.Helper()
	var mutex sync.Mutex
	var conns []*writeCounter
	pool := poolOf(t, db.URL, "", func(c *pgxpool.Config) {
		c.MaxConns = 1
		dial := c.ConnConfig.DialFunc
		c.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			counter := &writeCounter{Conn: conn}
			mutex.Lock()
			defer mutex.Unlock()
			conns = append(conns, counter)
			return counter, err
		}
		c.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
			connects.Add(1)
			return nil
		}
	})
	return pool, func() []*writeCounter {
		mutex.Lock()
		defer mutex.Unlock()
		return append([]*writeCounter(nil), conns...)
	}
}

// Claims hold all connections of the pool while they wait for the barrier, and
// all that wait at the same time need one flush.
func TestFlushBarrierHasOneConnectionForAll(t *testing.T) {
	db := pgtest.NewOutbox(t)
	var connects atomic.Int64
	pool, conns := countedPool(t, db, &connects)
	busy, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Release()
	barrier := source.NewBarrier(pool, "public", "outbox", nil)
	t.Cleanup(barrier.Close)
	if err := barrier.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := conns()
	expect(t, "connections", len(all), 2)
	before := all[1].writes.Load()
	var wait sync.WaitGroup
	var failed atomic.Int64
	const callers = 40
	for range callers {
		wait.Go(func() {
			conn, err := pgx.Connect(t.Context(), db.URL)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
			for range 10 {
				var end, flushed uint64
				err := conn.QueryRow(t.Context(), `SELECT set_config('synchronous_commit', 'off', false), pg_logical_emit_message(true, 't', 'x')`).Scan(nil, nil)
				if err == nil {
					err = conn.QueryRow(t.Context(), `SELECT pg_current_wal_insert_lsn() - '0/0'`).Scan(&end)
				}
				if err == nil {
					err = barrier.Flush(t.Context())
				}
				if err == nil {
					err = conn.QueryRow(t.Context(), `SELECT pg_current_wal_flush_lsn() - '0/0'`).Scan(&flushed)
				}
				if err != nil {
					t.Error(err)
					return
				}
				if flushed < end {
					failed.Add(1)
				}
			}
		})
	}
	wait.Wait()
	expect(t, "flushes that came too early", failed.Load(), int64(0))
	expect(t, "connections", len(conns()), 2)
	expect(t, "calls of BeforeConnect", connects.Load(), int64(2))
	trips := all[1].writes.Load() - before
	t.Logf("%d flushes took %d round trips", callers*10, trips)
	if trips >= callers*10 {
		t.Errorf("%d flushes took %d round trips, want fewer", callers*10, trips)
	}
}

// A server, a proxy or an administrator ends connections that are idle.
func TestFlushBarrierConnectsAgain(t *testing.T) {
	db := pgtest.NewOutbox(t)
	var connects atomic.Int64
	pool, _ := countedPool(t, db, &connects)
	barrier := source.NewBarrier(pool, "public", "outbox", nil)
	for range 3 {
		if err := barrier.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		expect(t, "sessions ended", db.Int(t, `SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'outbox-relay'`), int64(1))
	}
	expect(t, "calls of BeforeConnect", connects.Load(), int64(3)) // where a rotated password is read
	if err := barrier.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	barrier.Close()
	eventually(t, func() bool {
		return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox-relay'`) == 0
	})
	if err := barrier.Flush(t.Context()); err == nil {
		t.Error("a closed barrier flushes")
	}
}

// A flush that hangs keeps no caller longer than its own context.
func TestFlushBarrierIsBounded(t *testing.T) {
	db := pgtest.NewOutbox(t)
	pool := poolOf(t, db.URL, "", func(c *pgxpool.Config) {
		c.BeforeConnect = func(ctx context.Context, _ *pgx.ConnConfig) error {
			<-ctx.Done()
			return ctx.Err()
		}
	})
	barrier := source.NewBarrier(pool, "public", "outbox", nil)
	t.Cleanup(barrier.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := barrier.Flush(ctx); err == nil || ctx.Err() == nil {
		t.Errorf("error %v, want one of the deadline", err)
	}
}
