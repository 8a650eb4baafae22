package drivers

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/migrations"
	"github.com/outboxrelay/relay/outbox"
)

const effectSQL = `INSERT INTO effects (message_id) VALUES ($1::text::uuid)`

// inboxDatabase has an inbox, and a table of effects that refuses nothing.
func inboxDatabase(t *testing.T) (u *url.URL, conn *pgx.Conn) {
	t.Helper()
	u = database(t)
	conn = connect(t, u.String(), pgx.QueryExecModeExec)
	if err := (migrations.Target{Schema: "public", Table: "inbox", Set: migrations.Inbox}).Apply(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `CREATE TABLE effects (message_id uuid)`); err != nil {
		t.Fatal(err)
	}
	return u, conn
}

// checkOnce has process handle a message that fails at first, works then, and
// comes again, and checks what is in the database.
func checkOnce(t *testing.T, conn *pgx.Conn, process func(m inbox.Message, fail error) (inbox.Result, error)) {
	t.Helper()
	m := inbox.Message{
		ID: inbox.ID(outbox.NewUUID()), Topic: `"o'\`, Key: []byte{0, 0xff, '\\'}, Sequence: 3,
		Source: inbox.KafkaSource(`"o'\`, 1, 1<<40), ReceivedAt: time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC),
	}
	broken := errors.New("broken")
	if result, err := process(m, broken); result != inbox.Unprocessed || !errors.Is(err, broken) {
		t.Errorf("the handler fails: %v, %v", result, err)
	}
	for _, want := range []inbox.Result{inbox.Processed, inbox.Duplicate, inbox.Duplicate} {
		if result, err := process(m, nil); result != want || err != nil {
			t.Errorf("%v, %v, want %v", result, err, want)
		}
	}
	late := m
	late.ID, late.Sequence = inbox.ID(outbox.NewUUID()), 2
	if result, err := process(late, nil); result != inbox.Late || err != nil {
		t.Errorf("a message that is late: %v, %v", result, err)
	}
	var effects, rows int
	err := conn.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM effects WHERE message_id = $1::text::uuid),
		(SELECT count(*) FROM inbox WHERE message_id = $1::text::uuid AND (source, source_partition, source_offset, received_at) = ($2, 1, 1099511627776, '2026-01-02 03:04:05.678901+00'))`,
		m.ID.String(), m.Topic).Scan(&effects, &rows)
	if err != nil || effects != 1 || rows != 1 {
		t.Errorf("%d effects and %d rows (%v), want 1 and 1", effects, rows, err)
	}
}

func checkSQL(t *testing.T, db *sql.DB, conn *pgx.Conn) {
	t.Helper()
	defer func() { _ = db.Close() }()
	checkSQLBatch(t, db, conn)
	checkPruneSQL(t, db, conn)
	box := &inbox.Inbox{Consumer: fmt.Sprintf("it's %d", time.Now().UnixNano()), Order: inbox.OrderReport}
	checkOnce(t, conn, func(m inbox.Message, fail error) (inbox.Result, error) {
		return box.ProcessSQL(t.Context(), db, m, func(ctx context.Context, tx *sql.Tx, m inbox.Message) error {
			_, err := tx.ExecContext(ctx, effectSQL, m.ID.String())
			return errors.Join(err, fail)
		})
	})
	checkOnce(t, conn, func(m inbox.Message, fail error) (inbox.Result, error) {
		m.Topic += "in a transaction"
		m.Source.Name = `"o'\`
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			return inbox.Unprocessed, err
		}
		result, err := box.ProcessSQLTx(t.Context(), tx, m, func(ctx context.Context, tx *sql.Tx, m inbox.Message) error {
			_, err := tx.ExecContext(ctx, effectSQL, m.ID.String())
			return errors.Join(err, fail)
		})
		return result, errors.Join(err, tx.Commit())
	})
}

func checkSQLBatch(t *testing.T, db *sql.DB, conn *pgx.Conn) {
	t.Helper()
	box := &inbox.Inbox{Consumer: fmt.Sprintf("it's %d in batches", time.Now().UnixNano()), Order: inbox.OrderReport}
	checkOnce(t, conn, func(m inbox.Message, fail error) (inbox.Result, error) {
		results, err := box.ProcessSQLBatch(t.Context(), db, []inbox.Message{m, m}, func(ctx context.Context, tx *sql.Tx, fresh []inbox.Message) error {
			if len(fresh) != 1 {
				t.Errorf("%d fresh messages", len(fresh))
			}
			_, err := tx.ExecContext(ctx, effectSQL, fresh[0].ID.String())
			return errors.Join(err, fail)
		})
		if err != nil {
			return inbox.Unprocessed, err
		}
		return results[0], nil
	})
}

// checkPruneSQL prunes ids of long ago, and leaves the others.
func checkPruneSQL(t *testing.T, db *sql.DB, conn *pgx.Conn) {
	t.Helper()
	consumer := fmt.Sprintf("old %d", time.Now().UnixNano())
	if _, err := conn.Exec(t.Context(), `INSERT INTO inbox (consumer, message_id, processed_at)
		SELECT $1::text, gen_random_uuid(), now() - n * interval '10 days' FROM generate_series(0, 4) n`, consumer); err != nil {
		t.Fatal(err)
	}
	if n, err := (&inbox.Inbox{}).PruneSQL(t.Context(), db); n != 3 || err != nil {
		t.Errorf("%d ids were pruned (%v), want 3", n, err)
	}
}

func checkPool(t *testing.T, pool *pgxpool.Pool, conn *pgx.Conn) {
	t.Helper()
	box := &inbox.Inbox{Consumer: fmt.Sprintf("it's %d", time.Now().UnixNano()), Order: inbox.OrderReport}
	checkOnce(t, conn, func(m inbox.Message, fail error) (inbox.Result, error) {
		return box.Process(t.Context(), pool, m, func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
			_, err := tx.Exec(ctx, effectSQL, m.ID.String())
			return errors.Join(err, fail)
		})
	})
	checkOnce(t, conn, func(m inbox.Message, fail error) (inbox.Result, error) {
		box := &inbox.Inbox{Consumer: box.Consumer + " in batches", Order: inbox.OrderReport}
		results, err := box.ProcessBatch(t.Context(), pool, []inbox.Message{m, m}, func(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
			if len(fresh) != 1 {
				t.Errorf("%d fresh messages", len(fresh))
			}
			_, err := tx.Exec(ctx, effectSQL, fresh[0].ID.String())
			return errors.Join(err, fail)
		})
		if err != nil {
			return inbox.Unprocessed, err
		}
		if results[1] != inbox.Duplicate {
			t.Errorf("the second in the batch: %v", results[1])
		}
		return results[0], nil
	})
}

func TestInboxPQ(t *testing.T) {
	u, conn := inboxDatabase(t)
	for _, dsn := range []string{with(u, "sslmode", "disable"), with(u, "sslmode", "disable") + "&binary_parameters=yes"} {
		db, err := sql.Open("postgres", dsn)
		if err != nil {
			t.Fatal(err)
		}
		checkSQL(t, db, conn)
	}
}

func TestInboxPgBouncer(t *testing.T) {
	direct, conn := inboxDatabase(t)
	pooled := bouncer(t, direct)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			config, err := pgxpool.ParseConfig(pooled.String())
			if err != nil {
				t.Fatal(err)
			}
			config.ConnConfig.DefaultQueryExecMode = mode
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			checkPool(t, pool, conn)
			checkSQL(t, stdlib.OpenDB(*config.ConnConfig), conn)
		})
	}
	t.Run("pq", func(t *testing.T) {
		db, err := sql.Open("postgres", with(pooled, "sslmode", "disable")+"&binary_parameters=yes")
		if err != nil {
			t.Fatal(err)
		}
		checkSQL(t, db, conn)
	})
}
