package source

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// resettleStatements bounds the statements of one try to settle rows that could not be
	// settled together: as many as it takes to find a few that are at fault among
	// thousands, by halving.
	resettleStatements = 64
	// resettleRows bounds the rows of one try.
	resettleRows = 4000
	// resettleTimeout bounds one try on the server's side.
	resettleTimeout = 10 * time.Second
)

// UnsettledError says that messages were published, and that not all of them could be marked (or
// deleted). Those are not handed out again by this Claimer, but settled when that works
// again; another relay, or this one after a restart, sends them once more.
type UnsettledError struct {
	// Rows is how many there are, and Settled how many the call did settle.
	Rows, Settled int
	Err           error
}

// Error implements error.
func (e *UnsettledError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *UnsettledError) Unwrap() error { return e.Err }

// unsettled are rows that the broker has acknowledged and that could not be settled, with their
// message ids, since ids may begin again. It is safe for concurrent use.
type unsettled struct {
	count atomic.Int64
	mutex sync.Mutex
	rows  map[int64][16]byte
	// settled changes whenever some are no longer.
	settled uint64
}

// empty is asked for each row.
func (u *unsettled) empty() bool { return u.count.Load() == 0 }

func (u *unsettled) add(id int64, message [16]byte) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	if u.rows == nil {
		u.rows = map[int64][16]byte{}
	}
	u.rows[id] = message
	u.count.Store(int64(len(u.rows)))
}

// has reports whether a row is one of them; without a message id its own is not compared.
func (u *unsettled) has(id int64, message []byte) bool {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	known, ok := u.rows[id]
	return ok && (message == nil || string(known[:]) == string(message))
}

// first returns up to n of them, in ascending order.
func (u *unsettled) first(n int) (ids []int64, messages [][16]byte) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	for id := range u.rows {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	ids = ids[:min(n, len(ids))]
	for _, id := range ids {
		messages = append(messages, u.rows[id])
	}
	return ids, messages
}

func (u *unsettled) remove(ids []int64) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	for _, id := range ids {
		delete(u.rows, id)
	}
	u.count.Store(int64(len(u.rows)))
	if len(ids) > 0 {
		u.settled++
	}
}

func (u *unsettled) version() uint64 {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	return u.settled
}

// Unsettled is the number of rows that were published and could not be settled.
func (c *Claimer) Unsettled() int { return int(c.unsettled.count.Load()) }

// Resettle tries to settle what could not be settled before, and returns an UnsettledError
// while rows are left.
func (c *Claimer) Resettle(ctx context.Context) error {
	ids, messages := c.unsettled.first(resettleRows)
	if len(ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.holdTimeout())
	defer cancel()
	conn, err := c.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	defer release(conn)
	return c.resettle(ctx, conn.Conn().PgConn(), ids, messages)
}

// resettle settles rows on a connection without a transaction: together, or as many of them as can be.
func (c *Claimer) resettle(ctx context.Context, conn *pgconn.PgConn, ids []int64, messages [][16]byte) error {
	pending, err := c.pendingOf(ctx, conn, pendingOfSQL, ids, messages)
	if err == nil {
		c.unsettled.remove(without(ids, pending)) // they were settled after all, or are gone
		if len(pending) == 0 {
			return nil
		}
		ids, messages = only(pending, ids, messages)
		// The transaction of claims bounds this one, too, and commits what could be settled.
		request := &pgconn.Batch{}
		request.ExecParams(beginSQL, nil, nil, nil, nil)
		preparedOn(conn).add(request, settingsSQL, [][]byte{milliseconds(resettleTimeout)}, nil)
		_, err = conn.ExecBatch(ctx, request).ReadAll()
	}
	if err != nil {
		return c.unsettledError(len(ids), 0, err)
	}
	try := resettling{claimer: c, conn: conn, left: resettleStatements}
	try.settle(ctx, ids, messages)
	if try.fatal == nil {
		_, try.fatal = commitWith(ctx, conn, &pgconn.Batch{})
	}
	if try.fatal != nil {
		return c.unsettledError(len(ids), 0, try.fatal)
	}
	c.unsettled.remove(try.settled)
	if len(try.settled) < len(ids) {
		return c.unsettledError(len(ids)-len(try.settled), len(try.settled), try.err)
	}
	return nil
}

func (c *Claimer) unsettledError(rows, settled int, err error) error {
	if err == nil {
		err = errors.New("another session has them locked")
	}
	return &UnsettledError{Rows: rows, Settled: settled, Err: fmt.Errorf("mark %d published rows of %s: %w", rows, c.statements.outbox, err)}
}

// resettling is one try.
type resettling struct {
	claimer *Claimer
	conn    *pgconn.PgConn
	left    int
	settled []int64
	// err is the last reason why some could not be settled; fatal ends the try.
	err, fatal error
}

// settle settles the rows together, or each half of them.
func (r *resettling) settle(ctx context.Context, ids []int64, messages [][16]byte) {
	if r.left <= 0 || r.fatal != nil {
		return
	}
	r.left--
	done, err := r.together(ctx, ids, messages)
	if err == nil {
		r.settled = append(r.settled, done...)
		return
	}
	r.err = err
	if r.conn.IsClosed() {
		r.fatal = err
		return
	}
	if _, r.fatal = r.conn.Exec(ctx, "ROLLBACK TO SAVEPOINT some").ReadAll(); r.fatal != nil || len(ids) == 1 {
		return
	}
	// Either half first, or the tries of rows that never can be settled would leave none for the others.
	half := len(ids) / 2
	first := rand.IntN(2) == 0
	if first {
		r.settle(ctx, ids[:half], messages[:half])
	}
	r.settle(ctx, ids[half:], messages[half:])
	if !first {
		r.settle(ctx, ids[:half], messages[:half])
	}
}

// together settles all of the rows that nobody has locked, or none.
func (r *resettling) together(ctx context.Context, ids []int64, messages [][16]byte) ([]int64, error) {
	if _, err := r.conn.Exec(ctx, "SAVEPOINT some").ReadAll(); err != nil {
		r.fatal = err
		return nil, err
	}
	mine, err := r.claimer.pendingOf(ctx, r.conn, lockPendingOfSQL, ids, messages)
	if err != nil || len(mine) == 0 {
		return nil, err
	}
	result := preparedOn(r.conn).query(ctx, r.conn, r.claimer.settle, [][]byte{idArray(mine)})
	if result.Err != nil {
		return nil, result.Err
	}
	if n := result.CommandTag.RowsAffected(); n != int64(len(mine)) {
		return nil, hinderedError(n, len(mine))
	}
	_, err = r.conn.Exec(ctx, "RELEASE SAVEPOINT some").ReadAll()
	return mine, err
}

// hinderedError says that rows which are there and locked could not be marked.
func hinderedError(marked int64, of int) error {
	return fmt.Errorf("%d of %d could be marked: a trigger, a rule or row level security hinders the others", marked, of)
}

// pendingOf runs one of the statements about rows and their message ids.
func (c *Claimer) pendingOf(ctx context.Context, conn *pgconn.PgConn, sql string, ids []int64, messages [][16]byte) (pending []int64, err error) {
	result := conn.ExecParams(ctx, c.statements.expand(sql, "", ""), [][]byte{idArray(ids), uuidArray(messages)}, nil, nil, nil).Read()
	if result.Err != nil {
		return nil, result.Err
	}
	for _, row := range result.Rows {
		_, id, err := shardAndID([][]byte{[]byte("0"), row[0]})
		if err != nil {
			return nil, err
		}
		pending = append(pending, id)
	}
	slices.Sort(pending)
	return pending, nil
}

// without returns ids, in ascending order, that are not in others.
func without(ids, others []int64) (rest []int64) {
	for _, id := range ids {
		if _, found := slices.BinarySearch(others, id); !found {
			rest = append(rest, id)
		}
	}
	return rest
}

// only returns those ids and their messages that are pending.
func only(pending, ids []int64, messages [][16]byte) (of []int64, ofMessages [][16]byte) {
	for i, id := range ids {
		if _, found := slices.BinarySearch(pending, id); found {
			of, ofMessages = append(of, id), append(ofMessages, messages[i])
		}
	}
	return of, ofMessages
}
