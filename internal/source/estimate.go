package source

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// estimateRows is how many pending rows of each shard an Estimator looks at.
// Up to 64 times that the count is exact.
const estimateRows = 200

// estimateLimit bounds its statements, which take milliseconds.
const estimateLimit = 30 * time.Second

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
func (e *Estimator) Estimate(ctx context.Context) (backlog []Backlog, err error) {
	err = Within(ctx, e.pool, pgx.ReadOnly, estimateLimit, func(tx pgx.Tx) error {
		backlog, err = e.estimate(ctx, tx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", e.statements.outbox, err)
	}
	return backlog, nil
}

func (e *Estimator) estimate(ctx context.Context, tx pgx.Tx) ([]Backlog, error) {
	rows, err := tx.Query(ctx, e.statements.expand(headSQL, "", ""), pgx.QueryExecModeExec, estimateRows)
	if err != nil {
		return nil, err
	}
	var backlog []Backlog
	var b Backlog
	var seen int64
	truncated := false
	_, err = pgx.ForEachRow(rows, []any{&b.Topic, &b.Pending, &b.OldestAge, &truncated}, func() error {
		seen += b.Pending
		backlog = append(backlog, b)
		return nil
	})
	if err != nil || !truncated {
		return backlog, err
	}
	var text []byte
	if err := tx.QueryRow(ctx, e.statements.expand(plannedSQL, "", ""), pgx.QueryExecModeExec).Scan(&text); err != nil {
		return nil, err
	}
	var plans []struct {
		Plan struct {
			Rows float64 `json:"Plan Rows"`
		}
	}
	if err := json.Unmarshal(text, &plans); err != nil || len(plans) == 0 {
		return nil, fmt.Errorf("the planner's estimate: %w", err)
	}
	if factor := plans[0].Plan.Rows / float64(seen); factor > 1 {
		for i := range backlog {
			backlog[i].Pending = int64(float64(backlog[i].Pending) * factor)
		}
	}
	return backlog, nil
}
