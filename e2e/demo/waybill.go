package demo

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// waybills reads what the shipping service recorded, in its own database.
type waybills struct{ pool *pgxpool.Pool }

// counts returns how many orders were shipped so far, and how many deliveries
// of a message that was processed before were refused.
func (w waybills) counts(ctx context.Context) (shipped, refused int, err error) {
	err = w.pool.QueryRow(ctx, `SELECT (SELECT count(DISTINCT order_id) FROM shipments), (SELECT coalesce(sum(messages), 0)::bigint FROM refusals)`).Scan(&shipped, &refused)
	return shipped, refused, err
}

// shipments returns how often each order was shipped.
func (w waybills) shipments(ctx context.Context) (map[string]int, error) {
	rows, err := w.pool.Query(ctx, `SELECT order_id, count(*) FROM shipments GROUP BY order_id`)
	if err != nil {
		return nil, err
	}
	shipments := map[string]int{}
	var order string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&order, &n}, func() error {
		shipments[order] = n
		return nil
	})
	return shipments, err
}

// offsets returns, for each partition that the inbox knows of, the offset after
// the last message that was processed.
func (w waybills) offsets(ctx context.Context) (map[int]int64, error) {
	rows, err := w.pool.Query(ctx, `SELECT source_partition, max(source_offset) + 1 FROM inbox WHERE source_offset IS NOT NULL GROUP BY 1`)
	if err != nil {
		return nil, err
	}
	offsets := map[int]int64{}
	var partition int
	var offset int64
	_, err = pgx.ForEachRow(rows, []any{&partition, &offset}, func() error {
		offsets[partition] = offset
		return nil
	})
	return offsets, err
}
