package inbox_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/migrations"
)

// newDatabase has an inbox, and a table of effects without a key, so that an
// effect that happened twice is there twice.
func newDatabase(t testing.TB) *pgtest.Database {
	t.Helper()
	db := pgtest.New(t)
	migrate(t, db, migrations.Target{Schema: "public", Table: "inbox", Set: migrations.Inbox})
	db.Exec(t, `CREATE TABLE effects (message_id uuid NOT NULL, n int GENERATED ALWAYS AS IDENTITY)`)
	return db
}

func migrate(t testing.TB, db *pgtest.Database, target migrations.Target) {
	t.Helper()
	if err := target.Apply(t.Context(), connect(t, db.URL), nil); err != nil {
		t.Fatal(err)
	}
}

func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func newPool(t testing.TB, url string, change func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(config)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func openSQL(t testing.TB, url string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func newID() (id inbox.ID) {
	_, _ = rand.Read(id[:])
	return id
}

func newMessage() inbox.Message {
	return inbox.Message{ID: newID(), Topic: "orders", Key: []byte("k"), Source: inbox.KafkaSource("orders", 3, 42)}
}

const effectSQL = `INSERT INTO effects (message_id) VALUES ($1::text::uuid)`

// apply is the handler of most tests.
func apply(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	_, err := tx.Exec(ctx, effectSQL, m.ID.String())
	return err
}

func applySQL(ctx context.Context, tx *sql.Tx, m inbox.Message) error {
	_, err := tx.ExecContext(ctx, effectSQL, m.ID.String())
	return err
}

func applyAll(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
	for _, m := range fresh {
		if err := apply(ctx, tx, m); err != nil {
			return err
		}
	}
	return nil
}

func applyAllSQL(ctx context.Context, tx *sql.Tx, fresh []inbox.Message) error {
	for _, m := range fresh {
		if err := applySQL(ctx, tx, m); err != nil {
			return err
		}
	}
	return nil
}

// expectEffects checks that every message had one effect and a row, and that
// there are no others.
func expectEffects(t *testing.T, db *pgtest.Database, want int) {
	t.Helper()
	if n := db.Int(t, `SELECT count(*) FROM effects`); int(n) != want {
		t.Errorf("%d effects, want %d", n, want)
	}
	if n := db.Int(t, `SELECT count(DISTINCT message_id) FROM effects`); int(n) != want {
		t.Errorf("effects of %d messages, want %d", n, want)
	}
	if n := db.Int(t, `SELECT count(*) FROM inbox`); int(n) != want {
		t.Errorf("%d messages are seen, want %d", n, want)
	}
}

// await polls for a condition of the database.
func await(t *testing.T, db *pgtest.Database, what, sql string) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		var ok bool
		if err := db.Pool.QueryRow(context.Background(), sql).Scan(&ok); err != nil {
			t.Error(err)
			return
		}
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("waited in vain for %s", what)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// awaitWaiting waits until n claims wait for another transaction.
func awaitWaiting(t *testing.T, db *pgtest.Database) {
	t.Helper()
	await(t, db, "a claim that waits", `SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%INSERT INTO%inbox%'`)
}

func expectResult(t *testing.T, what string, got, want inbox.Result, err error) {
	t.Helper()
	if got != want || err != nil {
		t.Errorf("%s: %v (%v), want %v", what, got, err, want)
	}
}

func sqlHandlerThen(after func() error) inbox.SQLHandler {
	return func(ctx context.Context, tx *sql.Tx, m inbox.Message) error {
		if err := applySQL(ctx, tx, m); err != nil {
			return err
		}
		return after()
	}
}
