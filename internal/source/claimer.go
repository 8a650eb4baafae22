// Package source takes pending rows out of the outbox table for the delivery
// loop, and settles them when the broker has acknowledged them.
//
// The Claimer does it by polling. Each claim is one short transaction: it locks
// some virtual shards of the key space (advisory locks of the transaction, which
// vanish with it), reads their pending rows in id order and locks them too,
// hands them out, marks those that were published, and commits. Any number of
// Claimers, in any number of processes, share one table without knowing of each
// other. What has to hold, and why, is in docs/design.md.
package source

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Ordering is which rows keep their order.
type Ordering string

// The orderings of outbox.ordering.
const (
	OrderKey   Ordering = "key"
	OrderNone  Ordering = "none"
	OrderTotal Ordering = "total"
)

// OnPublished is what becomes of a row that was published.
type OnPublished string

// The values of outbox.on_published that polling knows.
const (
	Mark   OnPublished = "mark"
	Delete OnPublished = "delete"
)

const (
	// shardsPerClaim is how many shards a claim locks at most: a quarter, so
	// that four workers, of one relay or of several, find work side by side.
	shardsPerClaim = Shards / 4
	// claimBytes bounds a claim's payloads and headers, so that a batch of
	// large messages does not take the relay's memory. One row may exceed it.
	claimBytes = 8 << 20
	// holdMargin is how long the server waits for the relay beyond
	// publish_timeout before it ends the session: for the flush barrier and for
	// settling.
	holdMargin = 5 * time.Second
	// lockedFor is how long a key is left out because a row of it was locked by
	// somebody else, before that is tried again.
	lockedFor = 500 * time.Millisecond
	// flushTimeout bounds the flush barrier, which is part of that margin.
	flushTimeout = holdMargin - time.Second
	// rollbackTimeout bounds giving up a claim; past it the connection is
	// closed, which the server treats alike.
	rollbackTimeout = 2 * time.Second
)

// Options say which table a Claimer reads and how.
type Options struct {
	Schema, Table string
	Ordering      Ordering
	OnPublished   OnPublished
	// BatchSize is the number of rows in a claim at most.
	BatchSize int
	// PublishTimeout is how long the caller may take between Claim and Settle.
	// Some seconds later the server ends the session and frees the locks.
	PublishTimeout time.Duration
}

// Claimer claims batches of pending rows. Claim is for one goroutine; the
// batches may be settled from others.
type Claimer struct {
	pool       *pgxpool.Pool
	options    Options
	statements statements
	lockClass  string
	settle     string
	writers    string
	lowest     string
	highest    string
	due        string
	reserve    string
	unexcluded claimStatements
	held       heldStatements
	// often are the statements that are worth preparing.
	often  []string
	floors floors
	// agenda is when the first of the held back rows is due.
	agenda agenda
	// idle: the last claim got no shard.
	idle bool
	// notified: somebody says that there is something.
	notified atomic.Bool
	// around makes the next claim work around rows that somebody else has
	// locked; it leaves their keys out until lockedUntil.
	around      bool
	locked      Exclusion
	lockedUntil time.Time
	batches     sync.Pool
	decoder     decoder
}

// NewClaimer returns a Claimer on the pool. Each batch under way holds one of
// the pool's connections, and the flush barrier needs one more at times.
func NewClaimer(pool *pgxpool.Pool, options Options) *Claimer {
	s := newStatements(options.Schema, options.Table)
	c := &Claimer{
		pool:       pool,
		options:    options,
		statements: s,
		// The class tells the shards of one table from those of another.
		lockClass:  strconv.Itoa(int(LockClass(options.Schema, options.Table))),
		settle:     s.expand(markSQL, "", ""),
		writers:    s.expand(writersSQL, "", ""),
		reserve:    s.expand(reserveMarkSQL, "", ""),
		lowest:     s.look(options.Ordering),
		highest:    s.expand(highestSQL, "", ""),
		due:        s.expand(dueSQL, "", ""),
		unexcluded: s.claim(options.Ordering, func(int) string { return "" }),
		held:       s.held(options.Ordering, ""),
		floors:     newFloors(),
		decoder:    newDecoder(),
	}
	if options.OnPublished == Delete {
		c.settle, c.reserve = s.expand(deleteSQL, "", ""), s.expand(reserveDeleteSQL, "", "")
	}
	c.often = []string{settingsSQL, c.reserve, c.unexcluded.lock, c.unexcluded.read, c.settle, c.lowest, c.highest, c.writers, c.due}
	c.batches.New = func() any { return new(rowBatch) }
	return c
}

// Notified tells that a row was committed a moment ago, so that the next claim
// does not ask first whether there is any. It may be called from anywhere.
func (c *Claimer) Notified() { c.notified.Store(true) }

// Claim returns the next batch of pending rows that exclude does not hold back,
// or nil when there is none. Within a topic and key a batch holds a prefix of
// the pending rows, in ascending id, and until it is settled or released no
// other Claimer gets rows of its keys (ordering none: no other rows of it).
// All of its rows are committed and flushed to disk.
func (c *Claimer) Claim(ctx context.Context, exclude Exclusion) (Batch, error) {
	// The server bounds each statement alike; this is for a connection that
	// swallows everything.
	ctx, cancel := context.WithTimeout(ctx, c.holdTimeout())
	defer cancel()
	conn, err := c.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	batch, err := c.claim(ctx, conn, exclude)
	if batch == nil {
		c.giveUp(ctx, conn, err)
		return nil, err
	}
	return batch, nil
}

// giveUp ends a claim that has no batch.
func (c *Claimer) giveUp(ctx context.Context, conn *pgxpool.Conn, err error) {
	if pgconn.Timeout(err) {
		// A connection that swallows everything is not alone in that: each of the
		// pool's would take as long to find out about.
		c.pool.Reset()
	}
	releaseAfter(ctx, conn, err)
}

func (c *Claimer) holdTimeout() time.Duration { return c.options.PublishTimeout + holdMargin }

// claim leaves conn to the batch that it returns, and to its caller otherwise.
func (c *Claimer) claim(ctx context.Context, conn *pgxpool.Conn, exclude Exclusion) (*rowBatch, error) {
	exclude = c.withLocked(exclude, time.Now())
	sql, excluded := c.unexcluded, exclude.parameters()
	if len(excluded) > 0 {
		sql = c.statements.claim(c.options.Ordering, exclude.sql)
	}
	err := prepare(ctx, conn.Conn().PgConn(), c.often)
	if err != nil {
		return nil, fmt.Errorf("claim from %s: %w", c.statements.outbox, err)
	}
	if err := c.look(ctx, conn.Conn().PgConn()); err != nil {
		return nil, err
	}
	probe := c.idle && c.options.Ordering != OrderNone
	if notified := c.notified.Swap(false); probe && !notified {
		pending, err := c.probe(ctx, conn.Conn().PgConn(), sql.lock, excluded)
		if err != nil || !pending {
			return nil, err
		}
	}
	batch := c.batches.Get().(*rowBatch)
	batch.claimer, batch.conn = c, conn
	shards, err := c.take(ctx, batch, sql, excluded)
	c.idle = shards == 0
	if err == nil {
		c.learn(batch, shards)
	}
	if err != nil || len(batch.messages) == 0 {
		batch.recycle()
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "55P03" { // lock_not_available
			c.around = true
			return nil, errRowLocked
		}
		return nil, err
	}
	return batch, nil
}

// learn takes note of what a claim of so many shards read.
func (c *Claimer) learn(batch *rowBatch, shards int) {
	c.floors.claimed(len(batch.messages))
	for _, r := range batch.reached {
		c.floors.saw(r.shard, r.id)
	}
	if shards == 0 || c.options.Ordering == OrderTotal && shards < Shards {
		return // nothing was read
	}
	// A claim that got all the shards that it may have leaves others with rows.
	batch.full = len(batch.messages) >= c.perShard(shards) || c.options.Ordering == OrderKey && shards == shardsPerClaim
	c.leaveOut(batch)
}

// errRowLocked says that a claim met a row that somebody else has locked, and
// that the next one will work around it.
var errRowLocked = errors.New("a pending row is locked by another session; the next claim leaves its key out")

// withLocked adds the keys and rows that were found locked a moment ago, so
// that they do not fill the next batches with what cannot be had.
func (c *Claimer) withLocked(exclude Exclusion, now time.Time) Exclusion {
	if now.After(c.lockedUntil) {
		c.locked = Exclusion{}
		return exclude
	}
	exclude.Keys = slices.Concat(exclude.Keys, c.locked.Keys)
	exclude.IDs = slices.Concat(exclude.IDs, c.locked.IDs)
	return exclude
}

// leaveOut notes what a batch worked around. A total order has nothing else to
// do meanwhile, and goes on working around. The time begins with the first key:
// if later ones put it off, a key could be left out for ever.
func (c *Claimer) leaveOut(batch *rowBatch) {
	nothing := len(batch.leftOut) == 0 && len(batch.leftOutIDs) == 0
	if c.options.Ordering == OrderTotal && !nothing {
		return
	}
	c.around = false
	if nothing {
		return
	}
	if len(c.locked.Keys) == 0 && len(c.locked.IDs) == 0 {
		c.lockedUntil = time.Now().Add(lockedFor)
	}
	c.locked.Keys = slices.AppendSeq(c.locked.Keys, maps.Keys(batch.leftOut))
	c.locked.IDs = append(c.locked.IDs, batch.leftOutIDs...)
}

// IsTransient reports whether err is part of normal work: claim again at once.
func IsTransient(err error) bool { return errors.Is(err, errRowLocked) }

// probe runs the statement that locks shards by itself, so that they are free
// again when it ends, and reports whether it found any. It is one round trip,
// where a transaction that is given up is two and three times the statements, and an
// idle relay does little else.
func (c *Claimer) probe(ctx context.Context, conn *pgconn.PgConn, sql string, excluded [][]byte) (bool, error) {
	batch := &pgconn.Batch{}
	preparedOn(conn).add(batch, sql, c.lockParameters(0, excluded), nil)
	preparedOn(conn).add(batch, c.due, nil, nil)
	results, err := conn.ExecBatch(ctx, batch).ReadAll()
	if err == nil {
		err = c.agenda.read(results[1])
	}
	var shards int
	if err == nil {
		shards, err = countOf(results[0].Rows)
	}
	if err != nil {
		return false, fmt.Errorf("claim from %s: %w", c.statements.outbox, err)
	}
	return shards > 0, nil
}

// countOf decodes the answer of a statement that locks shards.
func countOf(rows [][][]byte) (int, error) {
	if len(rows) != 1 || len(rows[0]) != 2 {
		return 0, errShape
	}
	return strconv.Atoi(string(rows[0][0]))
}

// lockParameters are those of the statement that locks shards, from shard first
// on.
func (c *Claimer) lockParameters(first int, excluded [][]byte) [][]byte {
	if c.options.Ordering == OrderNone {
		shards := make([]int64, Shards)
		for i := range shards {
			shards[i] = int64((first + i) % Shards)
		}
		return [][]byte{idArray(shards)}
	}
	return append([][]byte{
		[]byte(c.lockClass), []byte(strconv.Itoa(first)), []byte(strconv.Itoa(shardsPerClaim)), idArray(c.floors.floor[:]),
	}, excluded...)
}

// take begins the transaction, locks shards with pending rows, fills the batch
// with those and waits until they are on disk. It returns the number of shards.
func (c *Claimer) take(ctx context.Context, batch *rowBatch, sql claimStatements, excluded [][]byte) (shards int, err error) {
	pg := batch.conn.Conn().PgConn()
	prepared := preparedOn(pg)
	request := &pgconn.Batch{}
	c.begin(prepared, request)
	prepared.add(request, sql.lock, c.lockParameters(rand.IntN(Shards), excluded), nil)
	read := sql.read
	if c.around {
		read = sql.readAround
	}
	prepared.add(request, read, append([][]byte{
		idArray(c.floors.floor[:]), []byte(strconv.Itoa(c.options.BatchSize)), []byte(strconv.Itoa(claimBytes)),
	}, excluded...), []int16{pgBinary})
	request.ExecParams(flushedSQL, nil, nil, nil, []int16{pgBinary})

	results := pg.ExecBatch(ctx, request)
	for range beginStatements {
		if results.NextResult() {
			_, _ = results.ResultReader().Close() // the results' Close tells
		}
	}
	if results.NextResult() {
		if result := results.ResultReader().Read(); result.Err == nil {
			shards, err = countOf(result.Rows)
		}
	}
	if err == nil {
		err = c.decoder.decode(results, batch)
	}
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return shards, fmt.Errorf("claim from %s: %w", c.statements.outbox, err)
	}
	return shards, c.awaitFlush(ctx, batch)
}

// beginStatements is the number of statements that begin puts into a batch.
const beginStatements = 3

// begin begins the transaction of a claim.
func (c *Claimer) begin(prepared *preparedStatements, request *pgconn.Batch) {
	request.ExecParams(beginSQL, nil, nil, nil, nil)
	prepared.add(request, settingsSQL, [][]byte{[]byte(strconv.FormatInt(c.holdTimeout().Milliseconds(), 10))}, nil)
	prepared.add(request, c.reserve, nil, nil)
}

// perShard is how many rows of each shard a claim of so many shards reads.
func (c *Claimer) perShard(shards int) int {
	if c.options.Ordering != OrderKey {
		return c.options.BatchSize
	}
	return (c.options.BatchSize + shards - 1) / shards
}

// look asks, at times, what is pending and who writes, and tells the floors.
func (c *Claimer) look(ctx context.Context, conn *pgconn.PgConn) error {
	start := time.Now()
	ask, full := c.floors.begin(start)
	if !ask {
		return nil
	}
	from := c.floors.floor
	for shard := full.first; shard < full.last; shard++ {
		from[shard] = math.MinInt64
	}
	batch := &pgconn.Batch{}
	preparedOn(conn).add(batch, c.lowest, [][]byte{idArray(from[:])}, nil)
	// Rows that are held back are seen by no claim.
	preparedOn(conn).add(batch, c.highest, [][]byte{[]byte(strconv.Itoa(full.first)), []byte(strconv.Itoa(full.last))}, nil)
	preparedOn(conn).add(batch, c.writers, [][]byte{[]byte(c.lockClass)}, nil)
	preparedOn(conn).add(batch, c.due, nil, nil)
	results, err := conn.ExecBatch(ctx, batch).ReadAll()
	if err == nil {
		err = c.agenda.read(results[3])
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", c.statements.outbox, err)
	}
	pending := map[int]lowest{}
	for _, row := range results[0].Rows {
		shard, id, err := shardAndID(row)
		if err != nil {
			return fmt.Errorf("look at %s: %w", c.statements.outbox, err)
		}
		pending[shard] = lowest{id: id, draining: string(row[2]) == "t"}
	}
	for _, row := range results[1].Rows {
		shard, id, err := shardAndID(row)
		if err != nil {
			return fmt.Errorf("look at %s: %w", c.statements.outbox, err)
		}
		c.floors.saw(shard, id)
	}
	var writers []string
	for _, row := range results[2].Rows {
		writers = append(writers, string(row[0]))
	}
	c.floors.answered(full, pending, writers)
	if !full.empty() {
		c.floors.looked(time.Now(), time.Since(start))
	}
	return nil
}

// shardAndID decodes a shard and an id.
func shardAndID(row [][]byte) (shard int, id int64, err error) {
	shard, err1 := strconv.Atoi(string(row[0]))
	id, err2 := strconv.ParseInt(string(row[1]), 10, 64)
	return shard, id, errors.Join(err1, err2)
}

// fill reads rows into the batch and waits until they are on disk.
func (c *Claimer) fill(ctx context.Context, batch *rowBatch, sql string, parameters [][]byte) error {
	request := &pgconn.Batch{}
	preparedOn(batch.conn.Conn().PgConn()).add(request, sql, parameters, []int16{pgBinary})
	request.ExecParams(flushedSQL, nil, nil, nil, []int16{pgBinary})
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
	if err := c.flush(flushing); err != nil {
		return fmt.Errorf("flush the write-ahead log: %w", err)
	}
	return nil
}

// release gives the connection back, its transaction rolled back. A connection
// that does not answer is closed by the pool.
func release(conn *pgxpool.Conn) {
	defer conn.Release()
	pg := conn.Conn().PgConn()
	if pg.IsClosed() || pg.TxStatus() == 'I' {
		return
	}
	// The context that the claim had may be the reason for giving up.
	ctx, cancel := context.WithTimeout(context.Background(), rollbackTimeout)
	defer cancel()
	_, _ = pg.Exec(ctx, "ROLLBACK").ReadAll() // where it fails, Release closes the connection
}

// releaseAfter is release, but for a connection whose prepared statements err says
// are useless: that one is closed, and the next one prepares them anew.
func releaseAfter(ctx context.Context, conn *pgxpool.Conn, err error) {
	if isStale(err) {
		_ = conn.Conn().PgConn().Close(ctx)
	}
	release(conn)
}

// Ping reaches the table without claiming anything.
func (c *Claimer) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.holdTimeout())
	defer cancel()
	conn, err := c.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	defer release(conn)
	if _, err := conn.Conn().PgConn().Exec(ctx, c.statements.expand(probeSQL, "", "")).ReadAll(); err != nil {
		return fmt.Errorf("read %s: %w", c.statements.outbox, err)
	}
	return nil
}
