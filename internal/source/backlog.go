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
	s := newStatements(schema, table)
	rows, err := conn.Query(ctx, s.expand(backlogSQL, "", ""), pgx.QueryExecModeExec)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.outbox, err)
	}
	backlog, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Backlog])
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.outbox, err)
	}
	return backlog, nil
}

// PendingTopics lists the topics of pending rows, a thousand at most.
func PendingTopics(ctx context.Context, conn *pgx.Conn, schema, table string) ([]string, error) {
	s := newStatements(schema, table)
	rows, err := conn.Query(ctx, s.expand(topicsSQL, "", ""), pgx.QueryExecModeExec)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.outbox, err)
	}
	topics, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.outbox, err)
	}
	return topics, nil
}
