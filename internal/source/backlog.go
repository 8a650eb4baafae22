package source

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Backlog is what waits in one topic.
type Backlog struct {
	Topic   string
	Pending int64
	// OldestAge is the age of the oldest pending row, in seconds, since it
	// became available.
	OldestAge float64
}

// ReadBacklog counts the pending rows of each topic that has any; delayed rows
// that are not yet due do not count. It reads all pending rows.
func ReadBacklog(ctx context.Context, conn *pgx.Conn, schema, table string) ([]Backlog, error) {
	return readTable(ctx, conn, newStatements(schema, table), backlogSQL, pgx.RowToStructByPos[Backlog])
}

// PendingTopics lists the topics of pending rows, a thousand at most.
func PendingTopics(ctx context.Context, conn *pgx.Conn, schema, table string) ([]string, error) {
	return readTable(ctx, conn, newStatements(schema, table), topicsSQL, pgx.RowTo[string])
}

// readTable returns the rows of a statement that reads the table.
func readTable[T any](ctx context.Context, conn *pgx.Conn, s statements, sql string, to pgx.RowToFunc[T]) (all []T, err error) {
	err = Within(ctx, conn, pgx.ReadOnly, backlogLimit, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, s.expand(sql, "", ""), pgx.QueryExecModeExec)
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, to)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.outbox, err)
	}
	return all, nil
}
