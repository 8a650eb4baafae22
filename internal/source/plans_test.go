package source

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/pgtest"
)

// planOf is the plan that the connection keeps for a statement.
func planOf(t *testing.T, conn *pgxpool.Conn, sql string) string {
	t.Helper()
	name, ok := preparedOn(conn.Conn().PgConn()).name(sql)
	if !ok {
		t.Fatal("the statement is not prepared")
	}
	var parameters int
	err := conn.QueryRow(t.Context(), `SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = $1`, pgx.QueryExecModeExec, name).Scan(&parameters)
	if err != nil {
		t.Fatal(err)
	}
	execute := "EXPLAIN EXECUTE " + name
	if parameters > 0 {
		execute += "(NULL" + strings.Repeat(", NULL", parameters-1) + ")"
	}
	rows, err := conn.Query(t.Context(), execute, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// An idle relay of a table that was emptied plans for no rows at all, and a
// burst comes long before the server has new statistics.
func TestPlansOfAnEmptyTable(t *testing.T) {
	for _, ordering := range []Ordering{OrderKey, OrderNone, OrderTotal} {
		t.Run(string(ordering), func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			db.Exec(t, `ALTER TABLE outbox SET (autovacuum_enabled = false)`, `INSERT INTO outbox (topic) VALUES ('t')`, `DELETE FROM outbox`)
			db.Exec(t, `VACUUM (ANALYZE) outbox`) // knows that there are no pages
			c := NewClaimer(db.Pool, Options{
				Schema: "public", Table: "outbox", Ordering: ordering, OnPublished: Mark, BatchSize: 100, PublishTimeout: 10 * time.Second,
			})
			conn, err := db.Pool.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Release()
			pg := conn.Conn().PgConn()
			if err := prepare(t.Context(), pg, c.often); err != nil {
				t.Fatal(err)
			}
			plans := map[string]string{}
			for _, sql := range c.often {
				if sql == "" {
					continue
				}
				plans[sql] = planOf(t, conn, sql)
				// A sum of walks hashes the entries, all of which are few then.
				scan := "Seq Scan on outbox"
				if sql == c.looks.sum {
					scan += " "
				}
				if strings.Contains(plans[sql], scan) {
					t.Errorf("%s\nreads the whole table:\n%s", sql, plans[sql])
				}
			}
			if ordering != OrderTotal {
				return
			}
			// Here nothing but the number of rows tells the planner which index to use.
			lock := c.dueShards
			if !strings.Contains(plans[lock], "outbox_pkey") {
				t.Fatalf("the plan for an empty table is not the one that this test is about:\n%s", plans[lock])
			}
			db.Exec(t, `INSERT INTO outbox (topic, published_at) SELECT 't', now() FROM generate_series(1, 20000)`)
			for _, age := range []time.Duration{0, 2 * plansFor} {
				preparedOn(pg).planned = time.Now().Add(-age)
				if err := prepare(t.Context(), pg, c.often); err != nil {
					t.Fatal(err)
				}
				plan := planOf(t, conn, lock)
				if got, want := strings.Contains(plan, "outbox_pkey"), age < plansFor; got != want {
					t.Errorf("when the plan is %v old, along the primary key: %v, want %v\n%s", age, got, want, plan)
				}
			}
		})
	}
}
