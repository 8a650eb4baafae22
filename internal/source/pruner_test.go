package source_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

func newPruner(db *pgtest.Database) *source.Pruner {
	return source.NewPruner(db.Pool, "public", "outbox", 24*time.Hour)
}

// prunes makes a pass and checks how many rows it deletes and leaves.
func prunes(t *testing.T, db *pgtest.Database, p *source.Pruner, deleted, left int64) {
	t.Helper()
	got, err := p.Prune(t.Context())
	if err != nil {
		t.Error(err)
	}
	if n := db.Int(t, `SELECT count(*) FROM outbox`); got != deleted || n != left {
		t.Errorf("deleted %d rows, %d are left; want %d, %d", got, n, deleted, left)
	}
}

const insertPublished = `INSERT INTO outbox (topic, key, published_at) SELECT 't', 'k', now() - interval '2 days' FROM generate_series(1, 20000)`

func TestPruneGoesOnBehindYoungRows(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, insertPublished,
		// A replay of the oldest, some in the middle, and all kinds of times.
		`UPDATE outbox SET published_at = now() WHERE id <= 3000 OR id BETWEEN 9000 AND 16999`,
		`UPDATE outbox SET published_at = 'infinity' WHERE id = 1`,
		`UPDATE outbox SET published_at = '-infinity' WHERE id = 2`,
		`UPDATE outbox SET published_at = NULL WHERE id BETWEEN 19001 AND 20000`)
	p := newPruner(db)
	prunes(t, db, p, 8001, 11999)
	prunes(t, db, p, 0, 11999)
	// At the head all is looked at in each pass.
	db.Exec(t, `UPDATE outbox SET published_at = now() - interval '2 days' WHERE id BETWEEN 2501 AND 3000`)
	prunes(t, db, p, 500, 11499)
}

func TestPruneSkipsLockedRows(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, insertPublished)
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `SELECT FROM outbox WHERE id <= 3500 OR id > 19000 FOR KEY SHARE`); err != nil {
		t.Fatal(err)
	}
	p := newPruner(db)
	prunes(t, db, p, 15500, 4500)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	prunes(t, db, p, 4500, 0)
}

func TestPruneLeavesReferencedRows(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, insertPublished,
		`CREATE TABLE "Shipments" (outbox_id bigint CONSTRAINT "shipped from" REFERENCES outbox)`,
		`INSERT INTO "Shipments" SELECT id FROM outbox WHERE id <= 700 OR id % 1000 = 77`)
	p := newPruner(db)
	deleted, err := p.Prune(t.Context())
	kept, ok := errors.AsType[*source.KeptError](err)
	if !ok || deleted != 20000-719 || kept.Rows != 719 {
		t.Fatalf("deleted %d rows, error %v", deleted, err)
	}
	if remedy := source.Explain(err).Remedy; !strings.Contains(remedy, `ALTER TABLE "public"."Shipments" DROP CONSTRAINT "shipped from"`) {
		t.Error(remedy)
	}
	// It says so once, and others go on.
	db.Exec(t, `INSERT INTO outbox (topic, published_at) SELECT 't', now() - interval '2 days' FROM generate_series(1, 10)`)
	prunes(t, db, p, 10, 719)
	// Another Pruner knows nothing of it.
	db.Exec(t, `DELETE FROM "Shipments" WHERE outbox_id <= 700`)
	if deleted, err := newPruner(db).Prune(t.Context()); deleted != 700 || err == nil {
		t.Errorf("deleted %d rows, error %v", deleted, err)
	}
}

func TestPruneLeavesWhatATriggerRefuses(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, insertPublished, `CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF OLD.id % 2000 = 0 THEN RAISE EXCEPTION 'it is kept'; END IF; RETURN OLD; END $$`,
		`CREATE TRIGGER keep BEFORE DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION keep()`)
	deleted, err := newPruner(db).Prune(t.Context())
	if kept, ok := errors.AsType[*source.KeptError](err); !ok || deleted != 19990 || kept.Rows != 10 || !strings.Contains(err.Error(), "it is kept") {
		t.Errorf("deleted %d rows, error %v", deleted, err)
	}
}

// strictRole is a pool whose role has defaults that hinder.
func strictRole(t *testing.T, db *pgtest.Database) *pgxpool.Pool {
	t.Helper()
	config := db.Pool.Config()
	for name, value := range map[string]string{
		"default_transaction_read_only": "on", "statement_timeout": "40ms", "lock_timeout": "1ms",
		"default_transaction_isolation": "serializable",
	} {
		config.ConnConfig.RuntimeParams[name] = value
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func TestDefaultsOfTheRoleDoNotCount(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, insertPublished, `INSERT INTO outbox (topic, key) SELECT 't', i FROM generate_series(1, 200000) i`)
	pool := strictRole(t, db)
	if n, err := source.NewPruner(pool, "public", "outbox", 24*time.Hour).Prune(t.Context()); n != 20000 || err != nil {
		t.Errorf("deleted %d rows, error %v", n, err)
	}
	if backlog, err := source.NewEstimator(pool, "public", "outbox").Estimate(t.Context()); err != nil || len(backlog) != 1 {
		t.Errorf("estimated %+v, error %v", backlog, err)
	}
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if backlog, err := source.ReadBacklog(t.Context(), conn.Conn(), "public", "outbox"); err != nil || len(backlog) != 1 || backlog[0].Pending != 200000 {
		t.Errorf("counted %+v, error %v", backlog, err)
	}
	if topics, err := source.PendingTopics(t.Context(), conn.Conn(), "public", "outbox"); err != nil || len(topics) != 1 {
		t.Errorf("topics %v, error %v", topics, err)
	}
}

func TestPruneRemembersWhatIsTooYoung(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, published_at) SELECT 't', now() FROM generate_series(1, 40000)`,
		`UPDATE outbox SET published_at = now() - interval '24 hours' + interval '5 seconds' WHERE id = 30000`)
	p := newPruner(db)
	prunes(t, db, p, 0, 40000)
	// Nobody sets such a time, but it shows that the rows are not read again …
	db.Exec(t, `UPDATE outbox SET published_at = now() - interval '2 days' WHERE id IN (20000, 25000)`)
	prunes(t, db, p, 0, 40000)
	prunes(t, db, newPruner(db), 2, 39998)
	// … before the first of them is past its retention.
	eventually(t, func() bool {
		n, err := p.Prune(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n == 1
	})
}
