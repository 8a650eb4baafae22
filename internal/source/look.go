package source

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// look asks, at times, what is pending and who writes, and tells the floors. One that takes
// too long fails by itself, and the claim goes on without.
func (c *Claimer) look(ctx context.Context, conn *pgconn.PgConn, exclude *Exclusion) error {
	if c.shrunk(exclude) {
		c.floors.drop()
		c.delayed.drop()
	}
	start := time.Now()
	c.floors.summed = !c.judges(exclude)
	q := c.floors.next(start)
	if !q.ask {
		return nil
	}
	err := c.answer(ctx, conn, exclude, &q)
	// What cannot be converted is met by a claim, and a smaller look ends before it.
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && (pgErr.Code == "57014" || isTextError(err)) { // query_canceled
		c.floors.failed(time.Now(), &q)
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", c.statements.outbox, err)
	}
	c.floors.looked(time.Now(), &q, time.Since(start))
	return nil
}

// answer asks the question in one round trip.
func (c *Claimer) answer(ctx context.Context, conn *pgconn.PgConn, exclude *Exclusion, q *question) error {
	from := c.floors.base
	for shard := q.full.first; shard < q.full.last; shard++ {
		from[shard] = math.MinInt64
	}
	first, last := q.shards.first, q.shards.last
	if !q.full.empty() { // one range serves both, as they are equal mostly
		first, last = min(first, q.full.first), max(last, q.full.last)
		q.shards = span{first, last}
	}
	prepared, request := preparedOn(conn), &pgconn.Batch{}
	settings := addSettings(conn, request)
	prepared.add(request, c.looks.settings, [][]byte{milliseconds(c.floors.limit)}, nil)
	prepared.add(request, c.looks.lowest, [][]byte{idArray(from[:]), itoa(first), itoa(last)}, nil)
	prepared.add(request, c.looks.restricted, nil, nil)
	prepared.add(request, c.looks.highest, [][]byte{itoa(q.full.first), itoa(q.full.last)}, nil)
	if len(q.walks) > 0 {
		shards, floors, rows := make([]int, len(q.walks)), make([]int64, len(q.walks)), make([]int, len(q.walks))
		for i, w := range q.walks {
			shards[i], floors[i], rows[i] = w.shard, w.floor, w.rows
		}
		walk := c.looks.walk
		switch {
		case c.floors.summed && c.fewEntries:
			walk = c.looks.sum
		case c.floors.summed:
			walk = c.looks.sumOfMany
		}
		prepared.add(request, walk, [][]byte{intArray(shards), idArray(floors), intArray(rows)}, nil)
	}
	prepared.add(request, c.looks.writers, [][]byte{[]byte(c.lockClass), []byte(c.ownClass)}, nil)
	prepared.add(request, c.due, nil, nil)
	results, err := conn.ExecBatch(ctx, request).ReadAll()
	if err != nil {
		return err
	}
	return c.takeAnswers(results[settings+1:], exclude, q)
}

// judges reports whether rows are left out for reasons that the server does not know.
func (c *Claimer) judges(exclude *Exclusion) bool {
	return exclude.Holds != nil || !c.locked.empty() || !c.unsettled.empty()
}

// takeAnswers tells the floors what the look found.
func (c *Claimer) takeAnswers(results []*pgconn.Result, exclude *Exclusion, q *question) error {
	pending := map[int]int64{}
	for _, row := range results[0].Rows {
		shard, id, err := shardAndID(row)
		if err != nil {
			return err
		}
		pending[shard] = id
	}
	if len(results[1].Rows) == 1 {
		entries := string(results[1].Rows[0][0]) == "t"
		c.floors.restricted = c.options.Ordering != OrderTotal &&
			(entries || c.judges(exclude))
		c.fewEntries = string(results[1].Rows[0][1]) == "t"
	}
	for _, row := range results[2].Rows {
		shard, id, err := shardAndID(row)
		if err != nil {
			return err
		}
		c.floors.saw(shard, id)
	}
	results = results[3:]
	var walks []found
	if len(q.walks) > 0 {
		var err error
		if c.floors.summed {
			walks, err = summed(len(q.walks), results[0])
		} else {
			var rows []walked
			rows, err = c.walked(results[0], exclude)
			walks = sum(len(q.walks), rows)
		}
		if err != nil {
			return err
		}
		results = results[1:]
	}
	var writers []writer
	for _, row := range results[0].Rows {
		if row[0] == nil {
			shards, err := strconv.Atoi(string(row[1]))
			if err != nil {
				return err
			}
			c.share.saw(time.Now(), shards)
			continue
		}
		writers = append(writers, writer{name: string(row[0]), xid: string(row[1])})
	}
	if err := c.agenda.read(results[1]); err != nil {
		return err
	}
	c.floors.answered(time.Now(), q, pending, walks, writers)
	return nil
}

// walked reads what walkSQL returns.
func (c *Claimer) walked(result *pgconn.Result, exclude *Exclusion) ([]walked, error) {
	rows := make([]walked, len(result.Rows))
	for i, values := range result.Rows {
		n, id, err := shardAndID(values)
		if err != nil {
			return nil, err
		}
		row := Row{ID: id, Topic: string(values[4]), Type: string(values[5]), Key: values[6]}
		draining := string(values[3]) == "t"
		rows[i] = walked{
			walk: n - 1, id: id, draining: draining,
			leftOut: string(values[2]) == "t" || !draining && c.holds(exclude, &row, nil),
		}
	}
	return rows, nil
}

// summed reads what sumSQL returns.
func summed(walks int, result *pgconn.Result) ([]found, error) {
	all := sum(walks, nil)
	for _, values := range result.Rows {
		n, last, err := shardAndID(values)
		if err != nil {
			return nil, err
		}
		f := &all[n-1]
		f.last = last
		if f.rows, err = strconv.Atoi(string(values[2])); err != nil {
			return nil, err
		}
		for i, to := range [...]*int64{&f.kept, &f.free} {
			if value := values[3+i]; value != nil {
				if *to, err = strconv.ParseInt(string(value), 10, 64); err != nil {
					return nil, err
				}
			}
		}
	}
	return all, nil
}

// shardAndID decodes a shard and an id.
func shardAndID(row [][]byte) (shard int, id int64, err error) {
	shard, err1 := strconv.Atoi(string(row[0]))
	id, err2 := strconv.ParseInt(string(row[1]), 10, 64)
	return shard, id, errors.Join(err1, err2)
}

func itoa(n int) []byte { return []byte(strconv.Itoa(n)) }

func milliseconds(d time.Duration) []byte { return []byte(strconv.FormatInt(d.Milliseconds(), 10)) }
