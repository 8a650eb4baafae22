package source

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// resettleStatements bounds the statements of one try to settle rows that could not be
	// settled together: as many as it takes to find a few that are at fault among
	// thousands, by halving.
	resettleStatements = 256
	// resettleRows bounds the rows of one try.
	resettleRows = 4000
	// resettleTimeout bounds one try on the server's side.
	resettleTimeout = 10 * time.Second
	// rowPause is the pause before a row is tried again that cannot be settled by itself, doubled each time up to
	// rowPauseMax, so that it does not take the tries of others.
	rowPause, rowPauseMax = time.Second, 5 * time.Minute
	// soonestRows is how many of them are tried all the same.
	soonestRows = 4
	// trialRows is how many other rows are tried where none could be settled.
	trialRows = 16
)

// trialSQL locks the newest pending rows but those in $1, up to $2.
const trialSQL = `
SELECT o.id FROM {outbox} o WHERE o.published_at IS NULL AND o.id <> ALL ($1::bigint[])
ORDER BY o.id DESC LIMIT $2::int FOR UPDATE SKIP LOCKED`

// UnsettledError says that messages were published, and that not all of them could be marked (or
// deleted). Those are not handed out again by this Claimer, but settled when that works
// again; another relay, or this one after a restart, sends them once more.
type UnsettledError struct {
	// Rows is how many there are, and Settled how many the call did settle.
	Rows, Settled int
	// Others is whether rows that were not published yet could be settled, as a trial says that was taken
	// back. It is made where the call settled nothing.
	Others Trial
	Err    error
}

// Trial is the result of a trial.
type Trial uint8

const (
	// Untried means that there was no such row.
	Untried Trial = iota
	// Works means that one could be settled.
	Works
	// Fails means that none could.
	Fails
)

// Error implements error.
func (e *UnsettledError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *UnsettledError) Unwrap() error { return e.Err }

// unsettled are rows that the broker has acknowledged and that could not be settled, with their
// message ids, since ids may begin again. It is safe for concurrent use.
type unsettled struct {
	count atomic.Int64
	mutex sync.Mutex
	rows  map[int64]*unsettledRow
	// settled changes whenever some are no longer.
	settled uint64
}

// unsettledRow is one of them.
type unsettledRow struct {
	message [16]byte
	// failures counts the tries of this row by itself, and until is when it is tried again.
	failures int
	until    time.Time
}

// empty is asked for each row.
func (u *unsettled) empty() bool { return u.count.Load() == 0 }

func (u *unsettled) add(id int64, message [16]byte) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	if u.rows == nil {
		u.rows = map[int64]*unsettledRow{}
	}
	u.rows[id] = &unsettledRow{message: message}
	u.count.Store(int64(len(u.rows)))
}

// has reports whether a row is one of them; without a message id its own is not compared.
func (u *unsettled) has(id int64, message []byte) bool {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	known, ok := u.rows[id]
	return ok && (message == nil || string(known.message[:]) == string(message))
}

// due returns up to n of those that are to be tried now, in ascending order.
func (u *unsettled) due(now time.Time, n int) (ids []int64, messages [][16]byte) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	for id, row := range u.rows {
		if !now.Before(row.until) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	ids = ids[:min(n, len(ids))]
	for _, id := range ids {
		messages = append(messages, u.rows[id].message)
	}
	return ids, messages
}

// soonest returns up to n of them that are to be tried next.
func (u *unsettled) soonest(n int) (ids []int64, messages [][16]byte) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	ids = slices.SortedFunc(maps.Keys(u.rows), func(a, b int64) int { return u.rows[a].until.Compare(u.rows[b].until) })
	ids = ids[:min(n, len(ids))]
	slices.Sort(ids)
	for _, id := range ids {
		messages = append(messages, u.rows[id].message)
	}
	return ids, messages
}

// tryAll makes all of them due.
func (u *unsettled) tryAll() {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	for _, row := range u.rows {
		row.until = time.Time{}
	}
}

// refused tells that rows could not be settled each by itself.
func (u *unsettled) refused(now time.Time, ids []int64) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	for _, id := range ids {
		if row, ok := u.rows[id]; ok {
			row.until = now.Add(min(rowPause<<min(row.failures, 20), rowPauseMax))
			row.failures++
		}
	}
}

// all returns their ids.
func (u *unsettled) all() []int64 {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	return slices.Collect(maps.Keys(u.rows))
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
	if c.Unsettled() == 0 {
		return nil
	}
	ids, messages := c.unsettled.due(time.Now(), resettleRows)
	alone := len(ids) == 0
	if alone {
		ids, messages = c.unsettled.soonest(soonestRows)
	}
	ctx, cancel := context.WithTimeout(ctx, c.holdTimeout())
	defer cancel()
	conn, err := c.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	defer release(conn)
	return c.resettle(ctx, conn.Conn().PgConn(), ids, messages, alone)
}

// IsWaiting reports whether err, of marking, says nothing new of the rows: somebody has them locked, or they
// wait for their next try.
func IsWaiting(err error) bool { return errors.Is(err, errRowsLocked) || errors.Is(err, errTriedLater) }

// errTriedLater says that the rows that are left were tried by themselves a moment ago.
var errTriedLater = errors.New("they are tried again later, each by itself")

// errRowsLocked says that somebody else has rows locked.
var errRowsLocked = errors.New("another session has them locked")

// resettle settles rows on a connection without a transaction: together, or as many of them as can be. Rows
// that are not due yet are tried alone: where one of them can be settled, so may all.
func (c *Claimer) resettle(ctx context.Context, conn *pgconn.PgConn, ids []int64, messages [][16]byte, alone bool) error {
	pending, err := c.pendingOf(ctx, conn, pendingOfSQL, ids, messages)
	if err == nil {
		c.unsettled.remove(without(ids, pending)) // they were settled after all, or are gone
		if c.Unsettled() == 0 {
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
		return c.unsettledError(len(ids), 0, Fails, err)
	}
	try := resettling{claimer: c, conn: conn, left: resettleStatements}
	if alone {
		for i := range ids {
			try.settle(ctx, ids[i:i+1], messages[i:i+1])
		}
		try.err = errTriedLater
	} else {
		try.settle(ctx, ids, messages)
	}
	others := Works
	if try.fatal == nil && len(try.settled) == 0 {
		others = try.others(ctx)
	}
	if try.fatal == nil {
		_, try.fatal = commitWith(ctx, conn, &pgconn.Batch{})
	}
	if try.fatal != nil {
		return c.unsettledError(len(ids), 0, Fails, try.fatal)
	}
	c.unsettled.remove(try.settled)
	switch {
	case !alone:
		c.unsettled.refused(time.Now(), try.refused)
	case len(try.settled) > 0:
		c.unsettled.tryAll()
	}
	if left := c.Unsettled(); left > 0 {
		if try.err == nil {
			try.err = errRowsLocked
		}
		return c.unsettledError(left, len(try.settled), others, try.err)
	}
	return nil
}

func (c *Claimer) unsettledError(rows, settled int, others Trial, err error) error {
	return &UnsettledError{Rows: rows, Settled: settled, Others: others, Err: fmt.Errorf("mark %d published rows of %s: %w", rows, c.table.outbox, err)}
}

// resettling is one try.
type resettling struct {
	claimer *Claimer
	conn    *pgconn.PgConn
	left    int
	settled []int64
	// refused are rows that could not be settled each by itself.
	refused []int64
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
	if _, r.fatal = r.conn.Exec(ctx, "ROLLBACK TO SAVEPOINT part").ReadAll(); r.fatal != nil {
		return
	}
	if len(ids) == 1 {
		r.refused = append(r.refused, ids...)
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

// others tries whether any row that was not published yet could be settled, and takes that back.
func (r *resettling) others(ctx context.Context) Trial {
	c := r.claimer
	result := r.conn.ExecParams(ctx, c.table.expand(trialSQL, "", ""), [][]byte{idArray(c.unsettled.all()), itoa(trialRows)}, nil, nil, nil).Read()
	if r.fatal = result.Err; r.fatal != nil || len(result.Rows) == 0 {
		return Untried
	}
	for _, row := range result.Rows {
		if _, r.fatal = r.conn.Exec(ctx, "SAVEPOINT part").ReadAll(); r.fatal != nil {
			return Fails
		}
		tried := preparedOn(r.conn).query(ctx, r.conn, c.settle, [][]byte{append(append([]byte{'{'}, row[0]...), '}')})
		if _, r.fatal = r.conn.Exec(ctx, "ROLLBACK TO SAVEPOINT part").ReadAll(); r.fatal != nil {
			return Fails
		}
		if tried.Err == nil && tried.CommandTag.RowsAffected() == 1 {
			return Works
		}
	}
	return Fails
}

// together settles all of the rows that nobody has locked, or none.
func (r *resettling) together(ctx context.Context, ids []int64, messages [][16]byte) ([]int64, error) {
	if _, err := r.conn.Exec(ctx, "SAVEPOINT part").ReadAll(); err != nil {
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
	_, err = r.conn.Exec(ctx, "RELEASE SAVEPOINT part").ReadAll()
	return mine, err
}

// hinderedError says that rows which are there and locked could not be marked.
func hinderedError(marked int64, of int) error {
	return fmt.Errorf("%d of %d could be marked: a trigger, a rule or row level security hinders the others", marked, of)
}

// pendingOf runs one of the statements about rows and their message ids.
func (c *Claimer) pendingOf(ctx context.Context, conn *pgconn.PgConn, sql string, ids []int64, messages [][16]byte) (pending []int64, err error) {
	result := conn.ExecParams(ctx, c.table.expand(sql, "", ""), [][]byte{idArray(ids), uuidArray(messages)}, nil, nil, nil).Read()
	if result.Err != nil {
		return nil, result.Err
	}
	for _, row := range result.Rows {
		id, err := strconv.ParseInt(string(row[0]), 10, 64)
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
