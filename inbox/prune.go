package inbox

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/outboxrelay/relay/internal/sqlstate"
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
	// message would have to pay for. It waits for locks of rows a second at most.
	pruneSQL = `DELETE FROM %[1]s WHERE ctid > $1::tid AND ctid < $2::tid AND %[2]s < now() - make_interval(secs => $3::float8)
  AND (SELECT set_config('lock_timeout', '1000', true)) IS NOT NULL`

	// oldSQL are the places of such rows.
	oldSQL = `SELECT ctid::text FROM %[1]s WHERE ctid > $1::tid AND ctid < $2::tid AND %[2]s < now() - make_interval(secs => $3::float8)`

	// pruneRowSQL deletes one of them.
	pruneRowSQL = `DELETE FROM %[1]s WHERE ctid = $1::tid AND %[2]s < now() - make_interval(secs => $2::float8)
  AND (SELECT set_config('lock_timeout', '1000', true)) IS NOT NULL`
)

// pruneWaits is how often one pass waits for locks in vain before it leaves out
// all around a row that is locked, instead of looking for the row.
const pruneWaits = 20

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
// needs SELECT and DELETE. An inbox may be partitioned. Rows that somebody has
// locked are left to a later call; those that cannot be deleted, because another
// table refers to them, stay, and an error says so after all others are gone.
func (i *Inbox) Prune(ctx context.Context, db Querier) (int64, error) {
	return i.pruneAll(ctx, pgxPruner{db})
}

// PruneSQL is Prune for database/sql: a *sql.DB.
func (i *Inbox) PruneSQL(ctx context.Context, db *sql.DB) (int64, error) {
	return i.pruneAll(ctx, sqlPruner{db})
}

func (i *Inbox) pruneAll(ctx context.Context, db pruner) (int64, error) {
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

func (i *Inbox) prune(ctx context.Context, db pruner, table, column string) (deleted int64, err error) {
	fail := func(err error) error {
		wrapped := fmt.Errorf("inbox: prune %s: %w", pgx.Identifier{i.schema(), table}.Sanitize(), err)
		if sqlstate.Of(err) == "42501" { // insufficient_privilege
			return fmt.Errorf("%w: as the owner, GRANT SELECT, DELETE on it to this role", wrapped)
		}
		return wrapped
	}
	leaves, err := db.leaves(ctx, i.schema(), table)
	if err != nil {
		return 0, fail(err)
	}
	if len(leaves) == 0 {
		return 0, fail(fmt.Errorf("%w: run `relay migrate --only inbox`", ErrNoTable))
	}
	pass := prunePass{db: db, retention: i.RetentionOrDefault().Seconds()}
	for _, leaf := range leaves {
		if leaf.Name == nil {
			continue
		}
		pass.table, pass.column = *leaf.Name, column
		for first := int64(0); first < leaf.Blocks; first += pruneBlocks {
			err := pass.blocks(ctx, first, first+pruneBlocks)
			if sqlstate.Of(err) == "42P01" { // undefined_table: a partition that somebody dropped meanwhile
				break
			}
			if err != nil {
				return pass.deleted, fail(err)
			}
		}
	}
	if pass.refused > 0 {
		return pass.deleted, fail(fmt.Errorf("%d rows past their retention stay: %w: drop the foreign key or trigger that keeps them, or make it ON DELETE CASCADE", pass.refused, pass.reason))
	}
	return pass.deleted, nil
}

// prunePass is one pass over a table and its partitions.
type prunePass struct {
	db            pruner
	retention     float64
	table, column string
	deleted       int64
	refused       int64
	reason        error // of the first that was refused
	waits         int
}

// blocks deletes what is old in a range of blocks, at once or, where something is
// in the way, in halves, down to one row.
func (p *prunePass) blocks(ctx context.Context, first, end int64) error {
	// The places of a block count from 1.
	after, until := fmt.Sprintf("(%d,0)", first), fmt.Sprintf("(%d,0)", end)
	n, err := p.db.delete(ctx, fmt.Sprintf(pruneSQL, p.table, p.column), after, until, p.retention)
	if err == nil {
		p.deleted += n
		return nil
	}
	switch p.hindrance(err) {
	case locked:
		if p.waits >= pruneWaits {
			return nil
		}
	case refused:
	case none:
		return err
	}
	if middle := (first + end) / 2; end-first > 1 {
		if err := p.blocks(ctx, first, middle); err != nil {
			return err
		}
		return p.blocks(ctx, middle, end)
	}
	return p.rows(ctx, after, until)
}

// rows deletes what is old between two places, row by row.
func (p *prunePass) rows(ctx context.Context, after, until string) error {
	places, err := p.db.places(ctx, fmt.Sprintf(oldSQL, p.table, p.column), after, until, p.retention)
	if err != nil {
		return err
	}
	for _, place := range places {
		n, err := p.db.delete(ctx, fmt.Sprintf(pruneRowSQL, p.table, p.column), place, p.retention)
		if err == nil {
			p.deleted += n
			continue
		}
		switch p.hindrance(err) {
		case refused:
			p.refused++
			p.reason = cmp.Or(p.reason, err)
		case locked:
			if p.waits >= pruneWaits {
				return nil
			}
		case none:
			return err
		}
	}
	return nil
}

// hindrance is why rows could not be deleted.
type hindrance int

const (
	none    hindrance = iota // of the rows: something else is wrong
	locked                   // by somebody else, for a while
	refused                  // by a constraint or a trigger, for good
)

func (p *prunePass) hindrance(err error) hindrance {
	switch state := sqlstate.Of(err); {
	case state == "55P03" || state == "40P01": // lock_not_available, deadlock_detected
		p.waits++
		return locked
	case strings.HasPrefix(state, "23") || state == "P0001": // integrity_constraint_violation, raise_exception
		return refused
	}
	return none
}
