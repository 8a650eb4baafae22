package operator

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Failures counts what is held back and what was given up in one topic.
type Failures struct {
	Topic                   string
	ParkedKeys, DeadLetters int64
}

// ReadFailures counts parked keys and dead letters of each topic that has any.
// It reads an index of both tables.
func ReadFailures(ctx context.Context, conn *pgx.Conn, schema, table string) ([]Failures, error) {
	rows, err := conn.Query(ctx, newStatements(schema, table).expand(failuresSQL), exec)
	if err != nil {
		return nil, fmt.Errorf("read the failures of %s: %w", pgx.Identifier{schema, table}.Sanitize(), err)
	}
	failures, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Failures])
	if err != nil {
		return nil, fmt.Errorf("read the failures of %s: %w", pgx.Identifier{schema, table}.Sanitize(), err)
	}
	return failures, nil
}
