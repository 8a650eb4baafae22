package source

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// pruneBatch is the number of rows that one statement looks at: small, so
	// that its transaction is short.
	pruneBatch = 1000
	// pruneEmptyPages is after how many pages without a row to delete a pass
	// ends, once it has come to rows that are too young.
	pruneEmptyPages = 3
)

// Pruner deletes published rows that are older than the retention, in small
// batches. Several may run at once.
type Pruner struct {
	pool       *pgxpool.Pool
	statements statements
	retention  time.Duration
}

// NewPruner returns a Pruner for rows whose publication lies further back than
// retention, which must be positive.
func NewPruner(pool *pgxpool.Pool, schema, table string, retention time.Duration) *Pruner {
	return &Pruner{pool: pool, statements: newStatements(schema, table), retention: retention}
}

// Prune makes one pass and returns how many rows it deleted. It walks in id
// order from the oldest row, and ends where rows are too young to delete: ids
// and publication times ascend together, roughly, so no index on published_at
// is needed, which would cost every mark a write. A row that was published
// much later than its neighbours is left to a later pass.
func (p *Pruner) Prune(ctx context.Context) (int64, error) {
	sql := p.statements.expand(pruneSQL, "", "")
	after, deleted := int64(math.MinInt64), int64(0)
	for young := 0; young < pruneEmptyPages; {
		var last *int64
		var seen, published, gone int64
		err := p.pool.QueryRow(ctx, sql, pgx.QueryExecModeExec, after, p.retention.Seconds(), pruneBatch).Scan(&last, &seen, &published, &gone)
		if err != nil {
			return deleted, fmt.Errorf("prune %s: %w", p.statements.outbox, err)
		}
		deleted += gone
		if seen < pruneBatch {
			return deleted, nil
		}
		after = *last
		switch {
		case gone > 0:
			young = 0
		case published > 0:
			young++
		}
	}
	return deleted, nil
}
