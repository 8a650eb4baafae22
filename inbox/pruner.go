package inbox

import (
	"context"
	"database/sql"

	"github.com/jackc/pgx/v5"
)

// pruner runs the statements of a pass, with pgx or with database/sql.
type pruner interface {
	leaves(ctx context.Context, schema, table string) ([]leaf, error)
	places(ctx context.Context, statement string, arguments ...any) ([]string, error)
	// delete runs a statement that writes, and returns how many rows it deleted.
	delete(ctx context.Context, statement string, arguments ...any) (int64, error)
}

// leaf is a table that holds rows; without a name it is the table itself, partitioned or not.
type leaf struct {
	Name   *string
	Blocks int64
}

type pgxPruner struct{ db Querier }

func (p pgxPruner) leaves(ctx context.Context, schema, table string) ([]leaf, error) {
	rows, err := p.db.Query(ctx, leavesSQL, schema, table)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[leaf])
}

func (p pgxPruner) places(ctx context.Context, statement string, arguments ...any) ([]string, error) {
	rows, err := p.db.Query(ctx, statement, arguments...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// delete works also where transactions are read-only by default, or serializable,
// which two pruners could not be: only BEGIN can say otherwise behind a pooler.
func (p pgxPruner) delete(ctx context.Context, statement string, arguments ...any) (n int64, err error) {
	db, ok := p.db.(interface {
		BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
	})
	if !ok {
		tag, err := p.db.Exec(ctx, statement, arguments...)
		return tag.RowsAffected(), err
	}
	err = pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, statement, arguments...)
		n = tag.RowsAffected()
		return err
	})
	return n, err
}

type sqlPruner struct{ db *sql.DB }

func (p sqlPruner) leaves(ctx context.Context, schema, table string) (leaves []leaf, err error) {
	rows, err := p.db.QueryContext(ctx, leavesSQL, schema, table)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var l leaf
		if err := rows.Scan(&l.Name, &l.Blocks); err != nil {
			return nil, err
		}
		leaves = append(leaves, l)
	}
	return leaves, rows.Err()
}

func (p sqlPruner) places(ctx context.Context, statement string, arguments ...any) (places []string, err error) {
	return query[string](ctx, p.db, statement, arguments)
}

func (p sqlPruner) delete(ctx context.Context, statement string, arguments ...any) (int64, error) {
	tx, err := p.db.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after the commit
	// Drivers refuse to be told that a transaction is not read-only.
	if _, err := tx.ExecContext(ctx, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE"); err != nil {
		return 0, err
	}
	result, err := tx.ExecContext(ctx, statement, arguments...)
	if err != nil {
		return 0, err
	}
	n, err := result.RowsAffected()
	if err != nil {
		return 0, err
	}
	return n, tx.Commit()
}
