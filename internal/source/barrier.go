package source

import (
	"context"

	"github.com/jackc/pgx/v5/pgconn"
)

// flush returns when all that was in the write-ahead log at its call is on
// disk.
//
// It exists because visible is not durable: a transaction with
// synchronous_commit = off can be seen before its commit record is on disk, and
// a row published then would be a phantom if the server crashed. Readers note
// the end of the log after their snapshot was taken; every commit that the
// snapshot sees lies before it. Where commits are synchronous the log is mostly
// flushed to there already, and nobody calls flush.
func (c *Claimer) flush(ctx context.Context) error {
	conn, err := c.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	batch := &pgconn.Batch{}
	batch.ExecParams(beginSQL, nil, nil, nil, nil)
	preparedOn(conn.Conn().PgConn()).add(batch, settingsSQL, [][]byte{[]byte("10000")}, nil)
	batch.ExecParams(flushSQL, nil, nil, nil, nil)
	batch.ExecParams(`COMMIT`, nil, nil, nil, nil)
	_, err = conn.Conn().PgConn().ExecBatch(ctx, batch).ReadAll()
	releaseAfter(ctx, conn, err)
	return err
}
