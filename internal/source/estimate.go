package source

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5/pgxpool"
)

// estimateRows is how many pending rows of each shard an Estimator looks at.
// Up to 64 times that the count is exact.
const estimateRows = 200

const (
	// headSQL counts the first $1 pending rows of each shard, by topic, and says
	// whether a shard may have had more. Its cost does not grow with the table.
	headSQL = `
WITH head AS MATERIALIZED (
    SELECT s.shard, r.topic, r.since
    FROM generate_series(0, 63) AS s(shard)
    CROSS JOIN LATERAL (
        SELECT * FROM (SELECT o.topic, o.created_at AS since FROM {outbox} o
                       WHERE {shard} = s.shard AND {normal} ORDER BY o.id LIMIT $1::int) a
        UNION ALL
        SELECT * FROM (SELECT o.topic, o.available_at AS since FROM {outbox} o
                       WHERE {shard} = s.shard AND {delayed} ORDER BY o.available_at LIMIT $1::int) b
    ) r
)
SELECT topic, count(*), greatest(extract(epoch FROM clock_timestamp() - min(since)), 0)::float8,
       (SELECT coalesce(max(n), 0) >= $1::int FROM (SELECT count(*) AS n FROM head GROUP BY shard) x)
FROM head GROUP BY topic ORDER BY topic`

	// plannedSQL asks the planner how many rows are pending, which it knows from
	// the last ANALYZE and the table's present size.
	plannedSQL = `EXPLAIN (FORMAT JSON) SELECT FROM {outbox} o WHERE {normal}`
)

// Estimator estimates what is pending, at a cost that does not grow with it.
type Estimator struct {
	pool       *pgxpool.Pool
	statements statements
}

// NewEstimator returns an Estimator of one outbox.
func NewEstimator(pool *pgxpool.Pool, schema, table string) *Estimator {
	return &Estimator{pool: pool, statements: newStatements(schema, table)}
}

// Estimate returns what is due and pending, per topic. Up to 200 rows in each
// of the 64 shards it is exact. With more, the planner's estimate of the whole is divided
// among the topics as the rows at the shards' heads are, and a topic that has
// none among those is left out: its rows are younger than they are.
func (e *Estimator) Estimate(ctx context.Context) ([]Backlog, error) {
	fail := func(err error) error { return fmt.Errorf("read %s: %w", e.statements.outbox, err) }
	conn, err := e.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	defer conn.Release()
	pg := conn.Conn().PgConn()
	result := pg.ExecParams(ctx, e.statements.expand(headSQL, "", ""), [][]byte{strconv.AppendInt(nil, estimateRows, 10)}, nil, nil, nil).Read()
	if result.Err != nil {
		return nil, fail(result.Err)
	}
	var backlog []Backlog
	var seen int64
	truncated := false
	for _, row := range result.Rows {
		b := Backlog{Topic: string(row[0])}
		if b.Pending, err = strconv.ParseInt(string(row[1]), 10, 64); err != nil {
			return nil, fail(err)
		}
		if b.OldestAge, err = strconv.ParseFloat(string(row[2]), 64); err != nil {
			return nil, fail(err)
		}
		truncated = string(row[3]) == "t"
		seen += b.Pending
		backlog = append(backlog, b)
	}
	if !truncated {
		return backlog, nil
	}
	result = pg.ExecParams(ctx, e.statements.expand(plannedSQL, "", ""), nil, nil, nil, nil).Read()
	if result.Err != nil {
		return nil, fail(result.Err)
	}
	var plans []struct {
		Plan struct {
			Rows float64 `json:"Plan Rows"`
		}
	}
	if err := json.Unmarshal(result.Rows[0][0], &plans); err != nil || len(plans) == 0 {
		return nil, fail(fmt.Errorf("the planner's estimate: %w", err))
	}
	if factor := plans[0].Plan.Rows / float64(seen); factor > 1 {
		for i := range backlog {
			backlog[i].Pending = int64(float64(backlog[i].Pending) * factor)
		}
	}
	return backlog, nil
}
