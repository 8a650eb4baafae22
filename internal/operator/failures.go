package operator

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/source"
)

// failuresLimit bounds the counting of failures.
const failuresLimit = time.Minute

// Failures counts what is held back and what was given up in one topic.
type Failures struct {
	Topic                   string
	ParkedKeys, DeadLetters int64
}

// ReadFailures counts parked keys and dead letters of each topic that has any.
// It reads both tables.
func ReadFailures(ctx context.Context, conn *pgx.Conn, schema, table string) ([]Failures, error) {
	var failures []Failures
	err := source.Within(ctx, conn, pgx.ReadOnly, failuresLimit, func(tx pgx.Tx) (err error) {
		failures, err = query(ctx, tx, pgx.RowToStructByPos[Failures], newStatements(schema, table).expand(failuresSQL))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the failures of %s: %w", pgx.Identifier{schema, table}.Sanitize(), err)
	}
	return failures, nil
}
