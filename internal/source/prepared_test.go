package source_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

func preparedCount(t *testing.T, conn *pgxpool.Conn) (n int) {
	t.Helper()
	err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'outbox\_relay\_%'`).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Somebody's DISCARD ALL, or a pooler that was not noticed, takes the prepared
// statements away; a changed column makes them useless.
func TestPreparedStatementsThatAreLostAreMadeAnew(t *testing.T) {
	for name, loss := range map[string]string{
		"deallocated": `DEALLOCATE ALL`,
		"column":      `ALTER TABLE outbox ALTER COLUMN type TYPE varchar(100)`,
	} {
		t.Run(name, func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			config := db.Pool.Config()
			config.MaxConns = 2 // one to claim, one to flush
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'a')`)
			c := claimer(pool, func(*source.Options) {})
			settle(t, claim(t, c, source.Exclusion{}), all)
			idle := pool.AcquireAllIdle(t.Context())
			prepared := 0
			for _, conn := range idle {
				prepared += preparedCount(t, conn)
				if _, err := conn.Exec(t.Context(), loss); err != nil {
					t.Fatal(err)
				}
				conn.Release()
			}
			if prepared == 0 {
				t.Fatal("a direct connection has nothing prepared")
			}
			db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'a')`)
			failures := 0
			eventually(t, func() bool {
				batch, err := c.Claim(context.WithoutCancel(t.Context()), source.Exclusion{})
				if err != nil {
					failures++
					t.Log(err)
				}
				if batch == nil {
					return false
				}
				settle(t, batch, all)
				return true
			})
			if failures > 1 {
				t.Errorf("%d claims failed, want one at most: the next connection prepares its own", failures)
			}
			expect(t, "pending", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`), int64(0))
		})
	}
}

// A connection that could prepare some statements and not the others is no use.
func TestStatementsThatCannotBePrepared(t *testing.T) {
	db := pgtest.NewOutbox(t)
	c := claimer(db.Pool, nil)
	db.Exec(t, `INSERT INTO outbox (topic) VALUES ('t')`, `ALTER TABLE outbox RENAME TO hidden`)
	for range 3 {
		if _, err := c.Claim(t.Context(), source.Exclusion{}); err == nil || source.Explain(err).Kind != "missing_table" {
			t.Errorf("error %v, want one of a missing table", err)
		}
	}
	db.Exec(t, `ALTER TABLE hidden RENAME TO outbox`)
	if batch := claim(t, c, source.Exclusion{}); batch == nil {
		t.Error("nothing is claimed when the table is back")
	}
}
