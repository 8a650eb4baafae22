package source

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// lockedFor is how long a key is left out because a row of it was locked by
	// somebody else, before it is looked whether it still is.
	lockedFor = 500 * time.Millisecond
	// lockedLook bounds the rows that are looked at then.
	lockedLook = 1000
)

// freeRowsSQL are those of the rows in $1 that nobody has locked, and those that are no
// longer there.
const freeRowsSQL = `
SELECT u.id FROM unnest($1::bigint[]) AS u(id)
WHERE NOT EXISTS (SELECT FROM {outbox} o WHERE o.id = u.id AND o.published_at IS NULL)
UNION ALL
SELECT f.id FROM (SELECT o.id FROM {outbox} o WHERE o.id = ANY ($1::bigint[]) AND o.published_at IS NULL FOR UPDATE SKIP LOCKED) f`

// lockedRows are rows that somebody else has locked, and with them their keys: they are left out, so
// that they do not fill the next batches with what cannot be had. Not safe for
// concurrent use.
type lockedRows struct {
	rows map[int64]Key
	// keys counts the locked rows by key; rows without one are in rows alone.
	keys map[Key]int
	// until is when it is looked whether they still are locked.
	until time.Time
	// freed changes whenever some are not any more.
	freed uint64
}

func newLockedRows() lockedRows {
	return lockedRows{rows: map[int64]Key{}, keys: map[Key]int{}}
}

func (l *lockedRows) empty() bool { return len(l.rows) == 0 }

func (l *lockedRows) add(id int64, key Key, keyed bool) {
	if _, known := l.rows[id]; known {
		return
	}
	if l.empty() {
		l.until = time.Now().Add(lockedFor)
	}
	if !keyed {
		key = Key{}
	} else {
		l.keys[key]++
	}
	l.rows[id] = key
}

func (l *lockedRows) holds(row *Row) bool {
	if l.empty() {
		return false
	}
	if row.Key == nil {
		_, ok := l.rows[row.ID]
		return ok
	}
	return l.keys[Key{Topic: row.Topic, Key: string(row.Key)}] > 0
}

func (l *lockedRows) remove(id int64) {
	key, ok := l.rows[id]
	if !ok {
		return
	}
	delete(l.rows, id)
	if l.keys[key]--; l.keys[key] <= 0 {
		delete(l.keys, key)
	}
	l.freed++
}

// sample are some of the rows, the first ones.
func (l *lockedRows) sample() []int64 {
	ids := make([]int64, 0, len(l.rows))
	for id := range l.rows {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids[:min(len(ids), lockedLook)]
}

// lookAtLocked finds out, at times, which of the locked rows are free again.
func (c *Claimer) lookAtLocked(ctx context.Context, conn *pgconn.PgConn) error {
	now := time.Now()
	if c.locked.empty() || now.Before(c.locked.until) {
		return nil
	}
	request := &pgconn.Batch{}
	request.ExecParams(beginSQL, nil, nil, nil, nil) // the role's default may be read-only
	preparedOn(conn).add(request, settingsSQL, [][]byte{milliseconds(c.holdTimeout())}, nil)
	sample := c.locked.sample()
	request.ExecParams(c.statements.expand(freeRowsSQL, "", ""), [][]byte{idArray(sample)}, nil, nil, nil)
	request.ExecParams("ROLLBACK", nil, nil, nil, nil)
	results, err := conn.ExecBatch(ctx, request).ReadAll()
	if err != nil {
		return fmt.Errorf("look at locked rows of %s: %w", c.statements.outbox, err)
	}
	free := 0
	for _, row := range results[2].Rows {
		id, err := strconv.ParseInt(string(row[0]), 10, 64)
		if err != nil {
			return err
		}
		c.locked.remove(id)
		free++
	}
	// They were locked together and are free together, most likely: looking at each would
	// take as long again as finding them did.
	if free == len(sample) {
		c.locked.clear()
	}
	c.locked.until = time.Now().Add(lockedFor)
	return nil
}

// clear forgets all of them: what is locked still is found again.
func (l *lockedRows) clear() {
	clear(l.rows)
	clear(l.keys)
	l.freed++
}
