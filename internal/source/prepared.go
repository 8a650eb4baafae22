package source

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	backendSQL = `SELECT pg_backend_pid()`

	// keepPlansSQL makes the server plan each prepared statement once: their
	// plans do not depend on what they are asked, and to plan a claim takes three
	// times as long as to run it. It is for the session, so not for a pooler's.
	keepPlansSQL = `SET plan_cache_mode = force_generic_plan`
)

// preparedKey is where a connection remembers its preparedStatements.
const preparedKey = "outbox-relay/prepared"

// preparedStatements are the names of the statements that a connection has
// prepared, by their text.
type preparedStatements map[string]string

// prepare prepares the statements on the connection, once, unless a pooler
// stands in between: there the next transaction may be another server
// session's. Where it fails in the middle, it closes the connection, which has
// some of them and not the others.
func prepare(ctx context.Context, conn *pgconn.PgConn, statements []string) error {
	if preparedOn(conn) != nil {
		return nil
	}
	prepared := preparedStatements{}
	result := conn.ExecParams(ctx, backendSQL, nil, nil, nil, nil).Read()
	if result.Err != nil {
		return fmt.Errorf("ask for the server process: %w", result.Err)
	}
	// A pooler makes up the process that it tells a client at the start.
	if direct := string(result.Rows[0][0]) == strconv.FormatUint(uint64(conn.PID()), 10); direct {
		if result := conn.ExecParams(ctx, keepPlansSQL, nil, nil, nil, nil).Read(); result.Err != nil {
			return fmt.Errorf("keep plans: %w", result.Err)
		}
		for _, sql := range statements {
			if sql == "" || prepared[sql] != "" {
				continue
			}
			hash := fnv.New64a()
			hash.Write([]byte(sql))
			name := fmt.Sprintf("outbox_relay_%016x", hash.Sum64())
			if _, err := conn.Prepare(ctx, name, sql, nil); err != nil {
				_ = conn.Close(ctx)
				return fmt.Errorf("prepare a statement: %w", err)
			}
			prepared[sql] = name
		}
	}
	conn.CustomData()[preparedKey] = prepared
	return nil
}

// preparedOn returns what prepare prepared on the connection.
func preparedOn(conn *pgconn.PgConn) preparedStatements {
	prepared, _ := conn.CustomData()[preparedKey].(preparedStatements)
	return prepared
}

// isStale reports whether the server does not know a prepared statement any
// more, or no longer returns the same columns for it: a connection that ends
// takes its statements with it.
func isStale(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pgErr.Code == "26000" || pgErr.Code == "0A000") // invalid_sql_statement_name, feature_not_supported
}

// add puts the statement into the batch, by its name if it has one.
func (p preparedStatements) add(batch *pgconn.Batch, sql string, parameters [][]byte, resultFormats []int16) {
	if name, ok := p[sql]; ok {
		batch.ExecPrepared(name, parameters, nil, resultFormats)
	} else {
		batch.ExecParams(sql, parameters, nil, nil, resultFormats)
	}
}

// query runs the statement by itself.
func (p preparedStatements) query(ctx context.Context, conn *pgconn.PgConn, sql string, parameters [][]byte) *pgconn.Result {
	if name, ok := p[sql]; ok {
		return conn.ExecPrepared(ctx, name, parameters, nil, nil).Read()
	}
	return conn.ExecParams(ctx, sql, parameters, nil, nil, nil).Read()
}
