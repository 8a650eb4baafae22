package inbox

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"database/sql"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/migrations"
)

// One failure is told once, whoever has the turn, until ctx ends.
func TestKeepPruned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Hour)
		defer cancel()
		passes, began := 0, time.Now()
		(&Inbox{Consumer: "c"}).keepPruned(ctx, time.Hour, logger, func() (int64, bool, error) {
			if passes == 0 && time.Since(began) > 10*time.Minute {
				t.Errorf("the first pass is after %s", time.Since(began))
			}
			switch passes++; passes {
			case 1, 2:
				return 0, true, errors.New("no table")
			case 3:
				return 0, false, nil // somebody else's turn
			}
			return 7, true, nil
		})
		if passes < 3 || passes > 10 {
			t.Errorf("%d passes in five hours", passes)
		}
		if n := strings.Count(log.String(), "no table"); n != 1 {
			t.Errorf("the failure is told %d times:\n%s", n, &log)
		}
		if passes > 3 && !strings.Contains(log.String(), "ids=7") {
			t.Errorf("a pass is not told:\n%s", &log)
		}
	})
}

// While one process prunes the others leave it alone, with either driver.
func TestOnePrunesAtATime(t *testing.T) {
	db := pgtest.New(t)
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := (migrations.Target{Schema: "public", Table: "inbox", Set: migrations.Inbox}).Apply(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
	standard, err := sql.Open("pgx", db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = standard.Close() }()
	box := &Inbox{Consumer: "c"}
	for name, turn := range map[string]func() (int64, bool, error){
		"pgx":          func() (int64, bool, error) { return box.takeTurn(t.Context(), db.Pool) },
		"database/sql": func() (int64, bool, error) { return box.takeTurnSQL(t.Context(), standard) },
	} {
		db.Exec(t, `INSERT INTO inbox (consumer, message_id, processed_at) SELECT 'c', gen_random_uuid(), now() - interval '16 days' FROM generate_series(1, 10)`)
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var first bool
		if err := tx.QueryRow(t.Context(), pruneTurnSQL, box.identifier("")).Scan(&first); err != nil || !first {
			t.Fatal(first, err)
		}
		if deleted, mine, err := turn(); deleted != 0 || mine || err != nil {
			t.Errorf("%s: beside another one %d ids were pruned (%t, %v)", name, deleted, mine, err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if deleted, mine, err := turn(); deleted != 10 || !mine || err != nil {
			t.Errorf("%s: %d ids were pruned (%t, %v), want 10", name, deleted, mine, err)
		}
	}
}

// The transaction that has the turn keeps no snapshot, whatever the role's default
// isolation: vacuum would remove no dead row of any table meanwhile.
func TestTurnHoldsNoSnapshot(t *testing.T) {
	db := pgtest.New(t)
	url := db.URL + "&default_transaction_isolation=serializable"
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := (migrations.Target{Schema: "public", Table: "inbox", Set: migrations.Inbox}).Apply(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	standard, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = standard.Close() }()
	db.Exec(t, `CREATE TABLE seen (turns bigint, snapshots bigint)`,
		`CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
			INSERT INTO seen SELECT count(*), count(backend_xmin) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction' AND pid <> pg_backend_pid();
			RETURN NULL; END $$`,
		`CREATE TRIGGER look AFTER DELETE ON inbox FOR EACH STATEMENT EXECUTE FUNCTION look()`)
	box := &Inbox{Consumer: "c"}
	for name, turn := range map[string]func() (int64, bool, error){
		"pgx":          func() (int64, bool, error) { return box.takeTurn(t.Context(), pool) },
		"database/sql": func() (int64, bool, error) { return box.takeTurnSQL(t.Context(), standard) },
	} {
		db.Exec(t, `DELETE FROM seen`, `INSERT INTO inbox (consumer, message_id, processed_at) SELECT 'c', gen_random_uuid(), now() - interval '16 days' FROM generate_series(1, 10)`)
		if deleted, mine, err := turn(); deleted != 10 || !mine || err != nil {
			t.Errorf("%s: %d ids were pruned (%t, %v)", name, deleted, mine, err)
		}
		var turns, snapshots int64
		if err := db.Pool.QueryRow(t.Context(), `SELECT turns, snapshots FROM seen`).Scan(&turns, &snapshots); err != nil || turns != 1 || snapshots != 0 {
			t.Errorf("%s: %d turns, %d of them hold a snapshot (%v), want 1 and 0", name, turns, snapshots, err)
		}
	}
}
