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
	// idleAfter is after how many claims that found nothing the next ones only
	// probe first.
	idleAfter = 10
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
	// empty counts the claims in a row that found nothing.
	empty int
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
	if isStale(err) {
		_ = conn.Conn().PgConn().Close(ctx) // the next connection prepares them anew
	}
	release(conn)
}

func (c *Claimer) holdTimeout() time.Duration { return c.options.PublishTimeout + holdMargin }

// claim leaves conn to the batch that it returns, and to its caller otherwise.
func (c *Claimer) claim(ctx context.Context, conn *pgxpool.Conn, exclude Exclusion) (*rowBatch, error) {
	exclude = c.withLocked(exclude, time.Now())
	sql, excluded := c.unexcluded, exclude.parameters()
	if len(excluded) > 0 {
		sql = c.statements.claim(c.options.Ordering, exclude.sql)
	}
	var shards []int64
	pending := true
	err := prepare(ctx, conn.Conn().PgConn(), c.often)
	if err != nil {
		return nil, fmt.Errorf("claim from %s: %w", c.statements.outbox, err)
	}
	err = c.look(ctx, conn.Conn().PgConn())
	floors := c.floors.floor
	if c.empty >= idleAfter && sql.lock != "" && err == nil {
		pending, err = c.probe(ctx, conn.Conn().PgConn(), sql.lock, floors, excluded)
	}
	if pending && err == nil {
		shards, err = c.lockShards(ctx, conn.Conn().PgConn(), sql.lock, floors, excluded)
	}
	if c.empty++; len(shards) > 0 {
		c.empty = 0
	}
	if err != nil || len(shards) == 0 || (c.options.Ordering == OrderTotal && len(shards) < Shards) {
		return nil, err
	}
	read := sql.read
	if c.around {
		read = sql.readAround
	}
	batch := c.batches.Get().(*rowBatch)
	batch.claimer, batch.conn = c, conn
	err = c.read(ctx, batch, read, shards, floors, excluded)
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
// where a transaction that is given up is two and four, and
// an idle relay does little else.
func (c *Claimer) probe(ctx context.Context, conn *pgconn.PgConn, sql string, floors [Shards]int64, excluded [][]byte) (bool, error) {
	batch := &pgconn.Batch{}
	preparedOn(conn).add(batch, sql, c.lockParameters(0, floors, excluded), nil)
	preparedOn(conn).add(batch, c.due, nil, nil)
	results, err := conn.ExecBatch(ctx, batch).ReadAll()
	if err == nil {
		err = c.agenda.read(results[1])
	}
	if err != nil {
		return false, fmt.Errorf("claim from %s: %w", c.statements.outbox, err)
	}
	return len(results[0].Rows) > 0, nil
}

// lockParameters are those of the statement that locks shards, from shard first
// on.
func (c *Claimer) lockParameters(first int, floors [Shards]int64, excluded [][]byte) [][]byte {
	return append([][]byte{
		[]byte(c.lockClass), []byte(strconv.Itoa(first)), []byte(strconv.Itoa(shardsPerClaim)), idArray(floors[:]),
	}, excluded...)
}

// lockShards begins the transaction and locks shards with pending rows. In
// ordering none there is nothing to lock, and it returns all shards.
func (c *Claimer) lockShards(ctx context.Context, conn *pgconn.PgConn, sql string, floors [Shards]int64, excluded [][]byte) ([]int64, error) {
	first := rand.IntN(Shards)
	batch := &pgconn.Batch{}
	batch.ExecParams(beginSQL, nil, nil, nil, nil)
	prepared := preparedOn(conn)
	prepared.add(batch, settingsSQL, [][]byte{[]byte(strconv.FormatInt(c.holdTimeout().Milliseconds(), 10))}, nil)
	prepared.add(batch, c.reserve, nil, nil)
	if sql != "" {
		prepared.add(batch, sql, c.lockParameters(first, floors, excluded), nil)
	}
	results, err := conn.ExecBatch(ctx, batch).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("claim from %s: %w", c.statements.outbox, err)
	}
	if sql == "" {
		shards := make([]int64, Shards)
		for i := range shards {
			shards[i] = int64((first + i) % Shards)
		}
		return shards, nil
	}
	rows := results[3].Rows
	shards := make([]int64, len(rows))
	for i, row := range rows {
		if shards[i], err = strconv.ParseInt(string(row[0]), 10, 64); err != nil {
			return nil, fmt.Errorf("claim from %s: shard: %w", c.statements.outbox, err)
		}
	}
	return shards, nil
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

// read fills the batch with the pending rows of the shards and waits until they
// are on disk.
func (c *Claimer) read(ctx context.Context, batch *rowBatch, sql string, shards []int64, floors [Shards]int64, excluded [][]byte) error {
	shardFloors := make([]int64, len(shards))
	for i, shard := range shards {
		shardFloors[i] = floors[shard]
	}
	perShard := c.options.BatchSize
	if c.options.Ordering == OrderKey {
		perShard = (c.options.BatchSize + len(shards) - 1) / len(shards)
	}
	err := c.fill(ctx, batch, sql, append([][]byte{
		idArray(shards), idArray(shardFloors), []byte(strconv.Itoa(perShard)),
		[]byte(strconv.Itoa(c.options.BatchSize)), []byte(strconv.Itoa(claimBytes)),
	}, excluded...))
	if err != nil {
		return err
	}
	c.floors.claimed(len(batch.messages))
	for _, r := range batch.reached {
		c.floors.saw(r.shard, r.id)
	}
	batch.full = len(batch.messages) >= perShard
	c.leaveOut(batch)
	return nil
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
