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
	"math"
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
	// claimBytes bounds a claim's payloads and headers, so that a batch of
	// large messages does not take the relay's memory. One row may exceed it.
	claimBytes = 8 << 20
	// holdMargin is how long the server waits for the relay beyond
	// publish_timeout before it ends the session: for the flush barrier and for
	// settling.
	holdMargin = 5 * time.Second
	// walkedRows is how many rows of a shard a claim walks over at most before it finds one that is not left
	// out; floors rise over the others. One claim in some goes on until it finds one, since
	// floors may be unable to rise.
	walkedRows = 512
	// thoroughShare bounds the share of time that such claims may take: one part in so many.
	thoroughShare = 20
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
	// Workers is how many batches the caller has under way at most; 0 is one.
	Workers int
	// Pipeline names one of several Claimers that share a table, each with a Filter of its own: a SQL
	// condition on the expressions of a row's topic and type that selects its rows. Empty and nil: all rows.
	Pipeline string
	Filter   func(topic, typ string) string
	// Barrier is shared by Claimers on one pool; nil: the Claimer has one of its own.
	Barrier *Barrier
}

// Claimer claims batches of pending rows. Claim is for one goroutine; the
// batches may be settled from others.
type Claimer struct {
	pool    *pgxpool.Pool
	options Options
	// table names the tables, and statements are also for the columns that the outbox has. Only claims use those.
	table, statements statements
	// lockClass is of the table's shards, and ownClass of the pipeline's, the same where it is the only one.
	lockClass, ownClass string
	settle              string
	due                 string
	reserve             string
	dueShards           string
	listDueIDs          string
	claims              claimStatements
	held                heldStatements
	looks               lookStatements
	// often are the statements that are worth preparing.
	often []string
	// columnsKnown: the statements are for the columns that the table has.
	columnsKnown bool

	floors  floors
	share   share
	delayed delayedRows
	locked  lockedRows
	// agenda is when the first of the held back rows is due.
	agenda    agenda
	unsettled unsettled
	// text and heldText are whether claims meet text that cannot be converted to UTF-8.
	text, heldText textDoubt
	barrier        *Barrier
	// excluded is what floors know of what is left out.
	excluded struct{ caller, locked, unsettled uint64 }
	// fewEntries: there are so few entries that a look may hash them.
	fewEntries bool
	// idle: the last claim got no shard.
	idle bool
	// notified: somebody says that there is something.
	notified atomic.Bool
	// around makes the next claim work around rows that somebody else has locked.
	around bool
	// thorough is when the next claim may walk as far as it takes.
	thorough time.Time
	batches  sync.Pool
	decoder  decoder
}

// NewClaimer returns a Claimer on the pool. Each batch under way holds one of
// the pool's connections; the flush barrier has one beside it.
func NewClaimer(pool *pgxpool.Pool, options Options) *Claimer {
	s := newStatements(options.Schema, options.Table)
	s.filter = options.Filter
	// The class tells the shards of one table from those of another.
	class := strconv.Itoa(int(LockClass(options.Schema, options.Table)))
	c := &Claimer{
		pool:       pool,
		options:    options,
		table:      s,
		statements: s,
		lockClass:  class,
		ownClass:   class,
		settle:     s.expand(markSQL, "", ""),
		reserve:    s.expand(reserveMarkSQL, "", ""),
		due:        s.expand(dueSQL, "", ""),
		looks:      s.look(options.Ordering),
		floors:     newFloors(),
		share:      share{workers: options.Workers},
		locked:     newLockedRows(),
		decoder:    newDecoder(),
	}
	if options.Filter != nil {
		c.ownClass = strconv.Itoa(int(pipelineClass(options.Schema, options.Table, options.Pipeline)))
	}
	if options.OnPublished == Delete {
		c.settle, c.reserve = s.expand(deleteSQL, "", ""), s.expand(reserveDeleteSQL, "", "")
	}
	exclude := notHeld(options.Ordering) + s.others("o.topic", "o.type")
	c.dueShards, c.listDueIDs = s.expand(dueShardsSQL, exclude, ""), s.expand(listDueSQL, exclude, "")
	c.setStatements(false)
	if c.barrier = options.Barrier; c.barrier == nil {
		c.barrier = NewBarrier(pool, options.Schema, options.Table, nil)
	}
	c.batches.New = func() any { return new(rowBatch) }
	return c
}

// Close closes the flush barrier. Nothing may be claimed after it.
func (c *Claimer) Close() { c.barrier.Close() }

// prepare makes a connection ready for claims.
func (c *Claimer) prepare(ctx context.Context, conn *pgconn.PgConn) error {
	if err := c.barrier.choose(ctx, conn); err != nil {
		return err
	}
	return prepare(ctx, conn, c.barrier.statements(c.often))
}

// setStatements makes the statements that depend on the table's columns.
func (c *Claimer) setStatements(hasJSON bool) {
	c.statements.hasJSON = hasJSON
	c.claims = c.statements.claim(&c.options)
	c.held = c.statements.held(c.options.Ordering)
	c.often = []string{
		settingsSQL, endedSQL, c.reserve, c.claims.lock, c.claims.read, c.settle, c.due, c.dueShards, c.listDueIDs,
		c.looks.settings, c.looks.lowest, c.looks.restricted, c.looks.highest, c.looks.walk, c.looks.sum, c.looks.sumOfMany, c.looks.writers,
	}
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
	batch, err := c.onConn(ctx, func(ctx context.Context, conn *pgxpool.Conn) (*rowBatch, error) {
		return c.claim(ctx, conn, exclude)
	})
	return batch, c.text.failed(err)
}

// ClaimNamed is Claim for the rows with these ids, as far as they are pending and nothing holds them
// back but an exclusion: it tries whether what is left out can be published again.
func (c *Claimer) ClaimNamed(ctx context.Context, ids []int64) (Batch, error) {
	batch, err := c.onConn(ctx, func(ctx context.Context, conn *pgxpool.Conn) (*rowBatch, error) {
		if err := c.prepare(ctx, conn.Conn().PgConn()); err != nil {
			return nil, fmt.Errorf("claim from %s: %w", c.statements.outbox, err)
		}
		return c.claimNamed(ctx, conn, Exclusion{}, ids)
	})
	return batch, c.text.failed(err)
}

// claimNamed leaves conn to the batch that it returns, and to its caller otherwise.
func (c *Claimer) claimNamed(ctx context.Context, conn *pgxpool.Conn, exclude Exclusion, ids []int64) (*rowBatch, error) {
	batch := c.newBatch(conn, exclude)
	read := c.claims.named
	if c.around {
		read = c.claims.namedAround
	}
	_, err := c.take(ctx, batch, c.claims.lockNamed, c.namedParameters(ids), read, &offered{ids: ids}, walkedRows)
	return c.taken(batch, err)
}

// namedParameters are those of the statement that locks the shards of some rows.
func (c *Claimer) namedParameters(ids []int64) [][]byte {
	parameters := [][]byte{[]byte(c.lockClass), idArray(ids)}
	if c.lockClass != c.ownClass && c.options.Ordering != OrderNone {
		parameters = append(parameters, []byte(c.ownClass))
	}
	return parameters
}

// onConn runs a claim on a connection of the pool, which the batch keeps.
func (c *Claimer) onConn(ctx context.Context, claim func(context.Context, *pgxpool.Conn) (*rowBatch, error)) (Batch, error) {
	// The server bounds each statement alike; this is for a connection that
	// swallows everything.
	ctx, cancel := context.WithTimeout(ctx, c.holdTimeout())
	defer cancel()
	conn, err := c.pool.Acquire(ctx)
	if err != nil {
		if ctx.Err() != nil && c.pool.Stat().AcquiredConns() >= c.pool.Config().MaxConns {
			return nil, errNoConnection
		}
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	var batch *rowBatch
	if err = c.learnColumns(ctx, conn.Conn().PgConn()); err == nil {
		batch, err = claim(ctx, conn)
	}
	if batch == nil {
		c.doubtColumns(err)
		c.giveUp(ctx, conn, err)
		return nil, err
	}
	return batch, nil
}

// errNoConnection says that batches under way have all connections, and no more than that: the database
// answers them.
var errNoConnection = errors.New("all connections are in use; raise database.max_connections, or lower outbox.workers")

// newBatch returns an empty batch on the connection.
func (c *Claimer) newBatch(conn *pgxpool.Conn, exclude Exclusion) *rowBatch {
	batch := c.batches.Get().(*rowBatch)
	batch.claimer, batch.conn, batch.statements, batch.exclude = c, conn, c.statements, exclude
	return batch
}

// taken returns the batch if there is anything in it.
func (c *Claimer) taken(batch *rowBatch, err error) (*rowBatch, error) {
	if err == nil && len(batch.messages) > 0 {
		c.share.took(batch.shards)
		return batch, nil
	}
	batch.recycle()
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "55P03" { // lock_not_available
		c.around = true
		return nil, errRowLocked
	}
	return nil, err
}

// giveUp ends a claim that has no batch.
func (c *Claimer) giveUp(ctx context.Context, conn *pgxpool.Conn, err error) {
	c.barrier.doubt(err)
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
	pg := conn.Conn().PgConn()
	if err := c.prepare(ctx, pg); err != nil {
		return nil, fmt.Errorf("claim from %s: %w", c.statements.outbox, err)
	}
	if err := c.lookAtLocked(ctx, pg); err != nil {
		return nil, err
	}
	if err := c.look(ctx, pg, &exclude); err != nil {
		return nil, err
	}
	if c.text.now {
		if before, err := c.rejectText(ctx, pg); err != nil {
			return nil, fmt.Errorf("claim from %s: %w", c.statements.outbox, err)
		} else if len(before) > 0 {
			return c.claimNamed(ctx, conn, exclude, before)
		}
	}
	walk, thorough := c.reach(time.Now())
	probe := c.idle && c.options.Ordering != OrderNone || c.delayed.never()
	if notified := c.notified.Swap(false); probe && (!notified || c.delayed.never()) {
		pending, err := c.probe(ctx, pg, walk)
		if err != nil || !pending && c.options.Ordering != OrderNone {
			return nil, err
		}
	}
	batch := c.newBatch(conn, exclude)
	shards, err := c.takeNext(ctx, batch, walk)
	c.idle = shards == 0
	c.reached(thorough)
	if err == nil {
		c.learn(batch, shards)
		if shards > 0 && batch.read == 0 && c.floors.owed() {
			err = errPassed
		}
	}
	return c.taken(batch, err)
}

// errPassed says that a claim read nothing, perhaps because a transaction ended that the floors had
// passed.
var errPassed = errors.New("a transaction may have ended whose rows lie below what claims look at; the next claim finds out")

// reach is how many rows of a shard the next claim may walk over, and when it began if that is more than
// usual.
func (c *Claimer) reach(now time.Time) (rows int64, thorough time.Time) {
	if !c.floors.stuck(now) || now.Before(c.thorough) {
		return walkedRows, time.Time{}
	}
	return math.MaxInt32, now
}

// reached takes note of how long a claim took that walked as far as it took.
func (c *Claimer) reached(began time.Time) {
	if !began.IsZero() {
		now := time.Now()
		c.thorough = now.Add(max(thoroughShare*now.Sub(began), fullLookInterval))
	}
}

// holds reports whether a row is left out of claims for now. Of a row that the caller does not know
// the message id it is nil.
func (c *Claimer) holds(exclude *Exclusion, row *Row, message []byte) bool {
	return exclude.Holds != nil && exclude.Holds(row) || c.locked.holds(row) || c.unsettled.has(row.ID, message)
}

// shrunk reports whether less is left out than when it was asked last.
func (c *Claimer) shrunk(exclude *Exclusion) bool {
	now := c.excluded
	now.caller, now.locked, now.unsettled = exclude.Shrunk, c.locked.freed, c.unsettled.version()
	was := c.excluded
	c.excluded = now
	return was != now
}

// learn takes note of what a claim of so many shards read.
func (c *Claimer) learn(batch *rowBatch, shards int) {
	c.floors.claimed(len(batch.messages), batch.heldBack)
	for _, r := range batch.reached {
		c.floors.saw(r.shard, r.id)
	}
	if shards == 0 || c.options.Ordering == OrderTotal && shards < Shards {
		return // nothing was read
	}
	// A claim that got all the shards that it may have leaves others with rows.
	batch.full = batch.read >= c.perShard(shards) || c.options.Ordering == OrderKey && shards >= c.share.size(time.Now())
	c.leaveOut(batch)
}

// errRowLocked says that a claim met a row that somebody else has locked, and
// that the next one will work around it.
var errRowLocked = errors.New("a pending row is locked by another session; the next claim leaves its key out")

// leaveOut notes what a batch worked around. A total order has nothing else to
// do meanwhile, and goes on working around.
func (c *Claimer) leaveOut(batch *rowBatch) {
	if c.options.Ordering == OrderTotal && len(batch.lockedRows) > 0 {
		return
	}
	c.around = false
	for _, row := range batch.lockedRows {
		c.locked.add(row.id, row.key, row.keyed)
	}
}

// IsTransient reports whether err is part of normal work: claim again at once.
func IsTransient(err error) bool {
	return errors.Is(err, errRowLocked) || errors.Is(err, errPassed) || errors.Is(err, errMigrated) || errors.Is(err, errNoConnection) ||
		errors.Is(err, errText) || isTextFound(err)
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
