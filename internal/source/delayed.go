package source

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// dueIDs is how many ids of delayed rows a claim lists at most, over all of its shards.
	dueIDs = 128 << 10
	// dueShare bounds the share of time that is spent on asking which shards have delayed rows
	// that are due: one part in so many.
	dueShare = 10
	// dueCheap is what asking may take every dueInterval.
	dueCheap    = time.Millisecond
	dueInterval = 10 * time.Millisecond
	// dueInVain is the pause where the last ones were left out.
	dueInVain = 500 * time.Millisecond
)

const (
	// dueShardsSQL are the shards that have delayed rows for the claim which are due, and how long it took to
	// find that out, in seconds. Where there is no delayed row at all, which is asked once,
	// the shards are not searched for those.
	dueShardsSQL = `
SELECT array(SELECT s.shard FROM generate_series(0, 63) AS s(shard)
             WHERE (SELECT EXISTS (SELECT FROM {outbox} o WHERE o.published_at IS NULL AND o.available_at IS NOT NULL))
               AND EXISTS (SELECT FROM {outbox} o WHERE {shard} = s.shard AND {delayed} {exclude} OFFSET 0)),
       extract(epoch FROM clock_timestamp() - statement_timestamp())::float8`

	// listDueSQL are the ids of delayed rows of the shards in $1 that are due, those that were due first, up to
	// $2 of each, in ascending order. id + 0 says that they have to be sorted, or a plan that
	// was made for an empty table walks along the primary key to save that.
	listDueSQL = `
SELECT s.shard, array(SELECT x.id FROM (SELECT o.id FROM {outbox} o WHERE {shard} = s.shard AND {delayed} {exclude}
                                        ORDER BY o.id + 0 LIMIT $2::int) x ORDER BY x.id)
FROM unnest($1::bigint[]) AS s(shard)`
)

// delayedRows knows the delayed rows that are due, as ids in ascending order per shard. The
// index has them by time: to read them in the order of their ids from it
// would take a walk over all that are due in each claim. A list is made while its shard is locked, and
// thrown away when a row of it is not published, so that none
// overtakes an earlier one of its key that was due when the list was made. Its methods are safe for concurrent use.
type delayedRows struct {
	mutex sync.Mutex
	due   [Shards]bool
	lists [Shards][]int64
	// passed are the shards whose lists lost rows that were left out, and come back when less is.
	passed [Shards]bool
	// next is when it is asked again which shards have any.
	next time.Time
}

// never reports whether it was never asked which shards have any.
func (d *delayedRows) never() bool {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return d.next.IsZero()
}

// asks reports whether it is time to ask which shards have rows that are due.
func (d *delayedRows) asks(now time.Time) bool {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return !now.Before(d.next)
}

// any returns the shards that have rows which are due.
func (d *delayedRows) any() (shards []int) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	for shard, due := range d.due {
		if due {
			shards = append(shards, shard)
		}
	}
	return shards
}

// read takes over the answer to dueShardsSQL.
func (d *delayedRows) read(now time.Time, result *pgconn.Result) error {
	if result.Err != nil {
		return result.Err
	}
	if len(result.Rows) != 1 || len(result.Rows[0]) != 2 {
		return errShape
	}
	shards, err := parseIDs(result.Rows[0][0])
	if err != nil {
		return err
	}
	took, err := strconv.ParseFloat(string(result.Rows[0][1]), 64)
	if err != nil {
		return err
	}
	d.mutex.Lock()
	defer d.mutex.Unlock()
	for _, shard := range shards {
		d.due[shard] = true
	}
	d.next = now.Add(max(dueInterval, dueShare*(time.Duration(took*float64(time.Second))-dueCheap)))
	return nil
}

// unlisted are those of the shards that have rows which are due but no list of them.
func (d *delayedRows) unlisted(shards []int64) (without []int64) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	for _, shard := range shards {
		if d.due[shard] && len(d.lists[shard]) == 0 {
			without = append(without, shard)
		}
	}
	return without
}

// list takes over the ids of a shard.
func (d *delayedRows) list(shard int, ids []int64) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.lists[shard] = ids
	d.due[shard] = len(ids) > 0
}

// offered are the next ids of some shards, one shard after the other in ascending order: those of
// shard s are ids[ends[s]:ends[s+1]].
type offered struct {
	ids  []int64
	ends [Shards + 1]int
}

// of returns the ids of a shard.
func (o *offered) of(shard int) []int64 { return o.ids[o.ends[shard]:o.ends[shard+1]] }

// offer returns the next ids of the shards, up to n of each.
func (d *delayedRows) offer(shards []int64, n int) (o offered) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	wanted := [Shards]bool{}
	for _, shard := range shards {
		wanted[shard] = true
	}
	for shard, list := range d.lists {
		if wanted[shard] {
			o.ids = append(o.ids, list[:min(n, len(list))]...)
		}
		o.ends[shard+1] = len(o.ids)
	}
	return o
}

// taken removes ids up to one that a claim returned from the list of its shard.
func (d *delayedRows) taken(shard int, upTo int64) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	list := d.lists[shard]
	n, found := slices.BinarySearch(list, upTo)
	if found {
		n++
	}
	d.lists[shard] = list[n:]
}

// inVain removes ids of a shard, up to one, that a claim offered and did not get: the rows are published, cancelled or left out.
func (d *delayedRows) inVain(shard int, upTo int64) {
	d.taken(shard, upTo)
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.due[shard] = len(d.lists[shard]) > 0
}

// pause puts off asking, since what is due is left out.
func (d *delayedRows) pause(now time.Time) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if next := now.Add(dueInVain); next.After(d.next) {
		d.next = next
	}
}

// forget throws away the list of a shard, because a row of it was not published.
func (d *delayedRows) forget(shard int) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.lists[shard], d.due[shard] = nil, true
}

// forgetOffered throws away the lists that ids were offered from.
func (d *delayedRows) forgetOffered(o *offered) {
	for shard := range Shards {
		if len(o.of(shard)) > 0 {
			d.forget(shard)
		}
	}
}

// leftOut tells that rows of a shard may have been taken off its list that claims leave out.
func (d *delayedRows) leftOut(shard int) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.passed[shard] = true
}

// drop throws away the lists that lost rows, since less is left out than before.
func (d *delayedRows) drop() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	for shard, passed := range d.passed {
		if passed {
			d.lists[shard], d.due[shard] = nil, true
		}
	}
	d.passed = [Shards]bool{}
}

// listDue makes the lists of shards that have none, in the claim's transaction.
func (c *Claimer) listDue(ctx context.Context, conn *pgconn.PgConn, shards []int64) error {
	without := c.delayed.unlisted(shards)
	if len(without) == 0 {
		return nil
	}
	result := preparedOn(conn).query(ctx, conn, c.listDueIDs, [][]byte{idArray(without), itoa(dueIDs / len(without))})
	if result.Err != nil {
		return result.Err
	}
	for _, row := range result.Rows {
		shard, err := strconv.Atoi(string(row[0]))
		if err != nil {
			return err
		}
		ids, err := parseIDs(row[1])
		if err != nil {
			return err
		}
		c.delayed.list(shard, ids)
	}
	return nil
}

// parseIDs reads the text of an array of ids.
func parseIDs(literal []byte) ([]int64, error) {
	inner, ok := strings.CutPrefix(string(literal), "{")
	inner, ok2 := strings.CutSuffix(inner, "}")
	if !ok || !ok2 {
		return nil, errShape
	}
	if inner == "" {
		return nil, nil
	}
	ids := make([]int64, 0, strings.Count(inner, ",")+1)
	for text := range strings.SplitSeq(inner, ",") {
		id, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, errors.Join(errShape, err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}
