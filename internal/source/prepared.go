package source

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// keepPlansSQL makes the server plan each prepared statement once: their
	// plans do not depend on what they are asked, and to plan a claim takes three
	// times as long as to run it. What settingsSQL says of scans holds for the
	// statements outside of a claim's transaction too: a look that was planned as
	// a scan of an empty table is the slower the more is pending. It is for the
	// session, so not for a pooler's.
	keepPlansSQL = `SELECT set_config('plan_cache_mode', 'force_generic_plan', false),
       set_config('enable_seqscan', 'off', false),
       set_config('enable_bitmapscan', 'off', false)`

	// discardPlansSQL makes the server plan anew. While a table is empty all of its
	// indexes are alike to the planner, so that it may keep the wrong one.
	discardPlansSQL = `DISCARD PLANS`

	// plansFor is how long plans are kept. The server itself drops them only after
	// an ANALYZE, which comes a minute after a burst of rows, or much later.
	plansFor = 5 * time.Second
)

// preparedKey is where a connection remembers its preparedStatements.
const preparedKey = "outbox-relay/prepared"

// preparedStatements are what a connection has prepared.
type preparedStatements struct {
	// direct: no pooler stands in between.
	direct bool
	// names of the statements, by their text.
	names map[string]string
	// planned is when the first of their plans may have been made.
	planned time.Time
}

// prepare prepares the statements on the connection, once, unless a pooler
// stands in between: there the next transaction may be another server
// session's. Where it fails in the middle, it closes the connection, which has
// some of them and not the others. Plans that are old it lets be made anew. It
// is not for a connection with a transaction.
func prepare(ctx context.Context, conn *pgconn.PgConn, statements []string) error {
	if prepared := preparedOn(conn); prepared != nil {
		if err := prepared.renew(ctx, conn, time.Now()); err != nil {
			return err
		}
		return prepared.prepare(ctx, conn, statements)
	}
	prepared := &preparedStatements{names: map[string]string{}, planned: time.Now()}
	direct, err := setUp(ctx, conn)
	if err != nil {
		return err
	}
	if prepared.direct = direct; direct {
		if result := conn.ExecParams(ctx, keepPlansSQL, nil, nil, nil, nil).Read(); result.Err != nil {
			return fmt.Errorf("keep plans: %w", result.Err)
		}
		if err := prepared.prepare(ctx, conn, statements); err != nil {
			return err
		}
	}
	conn.CustomData()[preparedKey] = prepared
	return nil
}

// prepare prepares those of the statements that are not yet.
func (p *preparedStatements) prepare(ctx context.Context, conn *pgconn.PgConn, statements []string) error {
	if !p.direct {
		return nil
	}
	for _, sql := range statements {
		if sql == "" || p.names[sql] != "" {
			continue
		}
		hash := fnv.New64a()
		hash.Write([]byte(sql))
		name := fmt.Sprintf("outbox_relay_%016x", hash.Sum64())
		if _, err := conn.Prepare(ctx, name, sql, nil); err != nil {
			_ = conn.Close(ctx)
			return fmt.Errorf("prepare a statement: %w", err)
		}
		p.names[sql] = name
	}
	return nil
}

// preparedOn returns what prepare prepared on the connection, nil before it did.
func preparedOn(conn *pgconn.PgConn) *preparedStatements {
	prepared, _ := conn.CustomData()[preparedKey].(*preparedStatements)
	return prepared
}

// renew discards plans that are old.
func (p *preparedStatements) renew(ctx context.Context, conn *pgconn.PgConn, now time.Time) error {
	if len(p.names) == 0 || now.Sub(p.planned) < plansFor {
		return nil
	}
	if result := conn.ExecParams(ctx, discardPlansSQL, nil, nil, nil, nil).Read(); result.Err != nil {
		return fmt.Errorf("discard plans: %w", result.Err)
	}
	p.planned = now
	return nil
}

// name returns the name of a statement that is prepared; p may be nil.
func (p *preparedStatements) name(sql string) (string, bool) {
	if p == nil {
		return "", false
	}
	name, ok := p.names[sql]
	return name, ok
}

// isStale reports whether the server does not know a prepared statement any
// more, or no longer returns the same columns for it: a connection that ends
// takes its statements with it.
func isStale(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pgErr.Code == "26000" || pgErr.Code == "0A000") // invalid_sql_statement_name, feature_not_supported
}

// add puts the statement into the batch, by its name if it has one.
func (p *preparedStatements) add(batch *pgconn.Batch, sql string, parameters [][]byte, resultFormats []int16) {
	if name, ok := p.name(sql); ok {
		batch.ExecPrepared(name, parameters, nil, resultFormats)
	} else {
		batch.ExecParams(sql, parameters, nil, nil, resultFormats)
	}
}

// query runs the statement by itself.
func (p *preparedStatements) query(ctx context.Context, conn *pgconn.PgConn, sql string, parameters [][]byte) *pgconn.Result {
	if name, ok := p.name(sql); ok {
		return conn.ExecPrepared(ctx, name, parameters, nil, nil).Read()
	}
	return conn.ExecParams(ctx, sql, parameters, nil, nil, nil).Read()
}
