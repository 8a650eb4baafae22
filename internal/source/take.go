package source

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// probe runs the statement that locks shards by itself, so that they are free
// again when it ends, and reports whether it found any. It is one round trip,
// where a transaction that is given up is two and three times the statements, and an
// idle relay does little else.
func (c *Claimer) probe(ctx context.Context, conn *pgconn.PgConn, walk int64) (bool, error) {
	batch := &pgconn.Batch{}
	prepared := preparedOn(conn)
	settings := addSettings(conn, batch)
	if settings > 0 { // or the session has them
		prepared.add(batch, settingsSQL, [][]byte{milliseconds(c.holdTimeout())}, nil)
		settings++
	}
	prepared.add(batch, c.claims.lock, c.lockParameters(0, walk), nil)
	prepared.add(batch, c.due, nil, nil)
	debts := c.floors.xids()
	if len(debts) > 0 {
		prepared.add(batch, endedSQL, [][]byte{textArray(debts)}, nil)
	}
	asks := c.delayed.asks(time.Now())
	if asks {
		prepared.add(batch, c.dueShards, nil, nil)
	}
	results, err := conn.ExecBatch(ctx, batch).ReadAll()
	if err == nil {
		results = results[settings:]
		err = c.agenda.read(results[1])
	}
	if err == nil && len(debts) > 0 && len(results[2].Rows) > 0 && c.floors.owed() {
		return false, errPassed
	}
	if err == nil && asks {
		err = c.delayed.read(time.Now(), results[len(results)-1])
	}
	var shards []int64
	if err == nil {
		shards, err = lockedShards(results[0].Rows)
	}
	if err != nil {
		return false, fmt.Errorf("claim from %s: %w", c.statements.outbox, err)
	}
	return len(shards) > 0 || len(c.delayed.any()) > 0, nil
}

// lockedShards decodes the answer of a statement that locks shards.
func lockedShards(rows [][][]byte) ([]int64, error) {
	if len(rows) != 1 || len(rows[0]) != 2 {
		return nil, errShape
	}
	return parseIDs(rows[0][1])
}

// lockParameters are those of the statement that locks shards, from shard first
// on.
func (c *Claimer) lockParameters(first int, walk int64) [][]byte {
	if c.options.Ordering == OrderNone {
		shards := make([]int64, Shards)
		for i := range shards {
			shards[i] = int64((first + i) % Shards)
		}
		return [][]byte{idArray(shards)}
	}
	parameters := [][]byte{
		[]byte(c.lockClass), itoa(first), itoa(c.share.size(time.Now())), idArray(c.floors.lifted[:]),
		intArray(c.delayed.any()), []byte(strconv.FormatInt(walk, 10)),
	}
	if c.lockClass != c.ownClass {
		parameters = append(parameters, []byte(c.ownClass))
	}
	return parameters
}

// takeNext locks the next shards that have pending rows, and reads those. It returns the number of shards.
func (c *Claimer) takeNext(ctx context.Context, batch *rowBatch, walk int64) (int, error) {
	read := c.claims.read
	if c.around {
		read = c.claims.readAround
	}
	lock := c.lockParameters(rand.IntN(Shards), walk)
	if len(c.delayed.any()) == 0 {
		return c.take(ctx, batch, c.claims.lock, lock, read, nil, walk)
	}
	// The delayed rows of the shards have to be named.
	pg := batch.conn.Conn().PgConn()
	request := &pgconn.Batch{}
	c.begin(preparedOn(pg), request)
	preparedOn(pg).add(request, c.claims.lock, lock, nil)
	now := time.Now()
	asks := c.delayed.asks(now)
	if asks {
		preparedOn(pg).add(request, c.dueShards, nil, nil)
	}
	results, err := pg.ExecBatch(ctx, request).ReadAll()
	var shards []int64
	if err == nil {
		shards, err = lockedShards(results[beginStatements].Rows)
	}
	if err == nil && asks {
		err = c.delayed.read(now, results[beginStatements+1])
	}
	if err == nil {
		err = c.listDue(ctx, pg, shards)
	}
	if err != nil {
		return len(shards), fmt.Errorf("claim from %s: %w", c.statements.outbox, err)
	}
	batch.shards = len(shards)
	offer := c.delayed.offer(shards, c.perShard(max(len(shards), 1)))
	if err := c.fill(ctx, batch, read, c.readParameters(&offer, walk)); err != nil {
		return len(shards), err
	}
	c.tookDelayed(batch, &offer, len(shards))
	return len(shards), nil
}

// tookDelayed takes the delayed rows off their lists that the batch has, and those that it would have if they
// could be had.
func (c *Claimer) tookDelayed(batch *rowBatch, offer *offered, shards int) {
	if batch.read == 0 && len(c.floors.debts) > 0 { // perhaps nothing was read at all (logEndSQL)
		c.delayed.forgetOffered(offer)
		return
	}
	reached := map[int]int64{}
	for _, r := range batch.reached {
		reached[r.shard] = r.id
	}
	cut := batch.read >= c.options.BatchSize || batch.bytes >= claimBytes/2 || batch.read >= c.perShard(max(shards, 1))
	vain, out := false, batch.read > len(batch.messages)
	for shard := range Shards {
		ids := offer.of(shard)
		if len(ids) == 0 {
			continue
		}
		last, any := reached[shard]
		if all, total := reached[allShards]; total {
			last, any = all, true
		}
		if any && ids[0] <= last {
			c.delayed.taken(shard, last)
			batch.delayed = append(batch.delayed, shard)
		}
		if highest := ids[len(ids)-1]; !cut && (!any || highest > last) {
			c.delayed.inVain(shard, highest)
			vain = true
		}
		if out {
			c.delayed.leftOut(shard)
		}
	}
	if c.options.Ordering == OrderTotal && (vain || out) {
		c.delayed.forgetOffered(offer) // all that is behind waits, and nothing tells when it does no more
	}
	if batch.heldBack > 0 || vain {
		c.delayed.pause(time.Now())
	}
}

// readParameters are those of the statements that read rows; offer may be nil.
func (c *Claimer) readParameters(offer *offered, walk int64) [][]byte {
	if offer == nil {
		offer = &offered{}
	}
	return [][]byte{
		idArray(c.floors.lifted[:]), itoa(c.options.BatchSize), itoa(claimBytes), idArray(offer.ids), intArray(offer.ends[:]),
		textArray(c.floors.xids()), []byte(strconv.FormatInt(walk, 10)),
	}
}

// take begins the transaction, locks shards, fills the batch
// with their rows and waits until they are on disk. It returns the number of shards.
func (c *Claimer) take(ctx context.Context, batch *rowBatch, lock string, parameters [][]byte, read string, offer *offered, walk int64) (int, error) {
	pg := batch.conn.Conn().PgConn()
	prepared := preparedOn(pg)
	request := &pgconn.Batch{}
	c.begin(prepared, request)
	prepared.add(request, lock, parameters, nil)
	prepared.add(request, c.barrier.statement(read), c.readParameters(offer, walk), []int16{pgBinary})
	request.ExecParams(c.statements.flushed(c.barrier.flushed()), nil, nil, nil, []int16{pgBinary})
	now := time.Now()
	asks := offer == nil && c.delayed.asks(now)
	if asks {
		prepared.add(request, c.dueShards, nil, nil)
	}

	results := pg.ExecBatch(ctx, request)
	for range beginStatements {
		if results.NextResult() {
			_, _ = results.ResultReader().Close() // the results' Close tells
		}
	}
	var err error
	if results.NextResult() {
		if result := results.ResultReader().Read(); result.Err == nil {
			var shards []int64
			shards, err = lockedShards(result.Rows)
			batch.shards = len(shards)
		}
	}
	if err == nil {
		err = c.decoder.decode(results, batch)
	}
	if err == nil && asks && results.NextResult() {
		err = c.delayed.read(now, results.ResultReader().Read())
	}
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return batch.shards, fmt.Errorf("claim from %s: %w", c.statements.outbox, err)
	}
	return batch.shards, c.awaitFlush(ctx, batch)
}

// beginStatements is the number of statements that begin puts into a batch.
const beginStatements = 3

// begin begins the transaction of a claim.
func (c *Claimer) begin(prepared *preparedStatements, request *pgconn.Batch) {
	request.ExecParams(beginSQL, nil, nil, nil, nil)
	prepared.add(request, settingsSQL, [][]byte{milliseconds(c.holdTimeout())}, nil)
	prepared.add(request, c.reserve, nil, nil)
}

// perShard is how many rows of each shard a claim of so many shards reads.
func (c *Claimer) perShard(shards int) int {
	if c.options.Ordering != OrderKey {
		return c.options.BatchSize
	}
	return (c.options.BatchSize + shards - 1) / shards
}

// fill reads rows into the batch and waits until they are on disk.
func (c *Claimer) fill(ctx context.Context, batch *rowBatch, sql string, parameters [][]byte) error {
	request := &pgconn.Batch{}
	preparedOn(batch.conn.Conn().PgConn()).add(request, c.barrier.statement(sql), parameters, []int16{pgBinary})
	request.ExecParams(c.statements.flushed(c.barrier.flushed()), nil, nil, nil, []int16{pgBinary})
	results := batch.conn.Conn().PgConn().ExecBatch(ctx, request)
	err := c.decoder.decode(results, batch)
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", c.statements.outbox, err)
	}
	return c.awaitFlush(ctx, batch)
}

// awaitFlush waits until the batch's rows are on disk.
func (c *Claimer) awaitFlush(ctx context.Context, batch *rowBatch) error {
	if batch.flushed >= batch.inserted || len(batch.messages) == 0 {
		return nil
	}
	// The server counts this time as the relay's.
	flushing, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := c.barrier.Flush(flushing); err != nil {
		return fmt.Errorf("flush the write-ahead log: %w", err)
	}
	return nil
}
