package inbox

import (
	"context"
	"database/sql"
	"errors"
)

// SQLBatchHandler is BatchHandler for database/sql.
type SQLBatchHandler func(ctx context.Context, tx *sql.Tx, fresh []Message) error

// ProcessSQLBatch is ProcessBatch for database/sql.
func (i *Inbox) ProcessSQLBatch(context.Context, SQLBeginner, []Message, SQLBatchHandler) ([]Result, error) {
	return nil, errors.ErrUnsupported
}
