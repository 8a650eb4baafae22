package inbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// pruneBlocks is how many blocks of the table one statement looks at: few, so
// that its transaction is short. They hold some thousand rows.
const pruneBlocks = 64

const (
	// leavesSQL lists the tables that hold the rows of $1.$2, which may be
	// partitioned, with their sizes in blocks; with a null name, that the table
	// exists.
	leavesSQL = `
WITH root AS (
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1::text AND c.relname = $2::text AND c.relkind IN ('r', 'p')
)
SELECT format('%I.%I', n.nspname, c.relname), pg_relation_size(c.oid) / current_setting('block_size')::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.oid IN (SELECT oid FROM root UNION ALL SELECT t.relid FROM root, pg_partition_tree(root.oid) t)
UNION ALL
SELECT NULL, 0 FROM root`

	// pruneSQL deletes the rows of %[1]s from before the retention, $3 seconds,
	// which lie between the places $1 and $2. A range of places is read as it
	// lies on the disk; no index on the time, %[2]s, is needed, which every
	// message would have to pay for.
	pruneSQL = `DELETE FROM %[1]s WHERE ctid > $1::tid AND ctid < $2::tid AND %[2]s < now() - make_interval(secs => $3::float8)`
)

// ErrNoTable is what errors.Is finds when there is no inbox to prune.
var ErrNoTable = errors.New("there is no such table")

// Querier runs statements, each in a transaction of its own: *pgxpool.Pool or
// *pgx.Conn.
type Querier interface {
	Query(ctx context.Context, sql string, arguments ...any) (pgx.Rows, error)
	Exec(ctx context.Context, sql string, arguments ...any) (pgconn.CommandTag, error)
}

// Prune removes the ids, of all consumers of the table, that were recorded
// longer than Retention ago, and what the order check knows of keys that had
// no message for as long. From then on such a message is new if it should
// come again, so Retention has to be longer than the broker can deliver a
// message again.
//
// It returns how many ids it removed, also beside an error. It reads the table
// once, from its beginning to its end as it lies on the disk, and deletes in
// transactions of some thousand rows, which hold up nobody but a duplicate of
// what is being removed. Call it from time to time, such as once an hour, or
// run `relay prune`, which does the same. Several may run at once. The role
// needs SELECT and DELETE. An inbox may be partitioned.
func (i *Inbox) Prune(ctx context.Context, db Querier) (int64, error) {
	if i.Retention < 0 {
		return 0, fmt.Errorf("inbox: Inbox.Retention: %s is negative", i.Retention)
	}
	deleted, err := i.prune(ctx, db, i.table(), "processed_at")
	if i.Observer != nil && deleted > 0 {
		i.Observer.Pruned(deleted)
	}
	if err == nil {
		_, err = i.prune(ctx, db, i.table()+"_order", "updated_at")
	}
	return deleted, err
}

func (i *Inbox) prune(ctx context.Context, db Querier, table, column string) (deleted int64, err error) {
	fail := func(err error) error {
		wrapped := fmt.Errorf("inbox: prune %s: %w", pgx.Identifier{i.schema(), table}.Sanitize(), err)
		if sqlState(err) == "42501" { // insufficient_privilege
			return fmt.Errorf("%w: as the owner, GRANT SELECT, DELETE on it to this role", wrapped)
		}
		return wrapped
	}
	rows, err := db.Query(ctx, leavesSQL, i.schema(), table)
	if err != nil {
		return 0, fail(err)
	}
	type leaf struct {
		Name   *string
		Blocks int64
	}
	leaves, err := pgx.CollectRows(rows, pgx.RowToStructByPos[leaf])
	if err != nil {
		return 0, fail(err)
	}
	if len(leaves) == 0 {
		return 0, fail(fmt.Errorf("%w: run `relay migrate --only inbox`", ErrNoTable))
	}
	for _, leaf := range leaves {
		if leaf.Name == nil {
			continue
		}
		sql := fmt.Sprintf(pruneSQL, *leaf.Name, column)
		for first := int64(0); first < leaf.Blocks; first += pruneBlocks {
			// The places of a block count from 1.
			after, until := fmt.Sprintf("(%d,0)", first), fmt.Sprintf("(%d,0)", first+pruneBlocks)
			tag, err := db.Exec(ctx, sql, after, until, i.RetentionOrDefault().Seconds())
			if sqlState(err) == "42P01" { // undefined_table: a partition that somebody dropped meanwhile
				break
			}
			if err != nil {
				return deleted, fail(err)
			}
			deleted += tag.RowsAffected()
		}
	}
	return deleted, nil
}
