package source

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/sinks"
)

// The states of an entry of the table of held back rows.
const (
	stateRetrying = "retrying"
	stateParked   = "parked"
	stateDraining = "draining"
)

// heldLockedFor is how long an entry waits when somebody else has its row
// locked.
const heldLockedFor = 500 * time.Millisecond

// heldBackFor is how long an entry waits when the caller leaves its row out: each
// time costs an update, and there may be many.
const heldBackFor = 10 * time.Second

// entry is a row of the table beside the outbox that holds back a key, or a row
// without one.
type entry struct {
	id       int64
	state    string
	attempts int
	key      Key
	keyed    bool
	shard    int64
	// last: the batch has all that waited behind it.
	last bool
}

// heldBatch is what a batch of held back messages has besides: the entries that
// it came from.
type heldBatch struct {
	heads map[int64]*entry // by the id of their message
	keys  map[Key]*entry   // that drain
	// found is how many rows there were before the batch was bounded, and read how
	// many then; shards counts the latter by shard.
	found, read int64
	shards      map[int64]int
	// absent are rows that were read and are not in the batch, because they or one
	// before them of their key is locked by somebody else.
	absent []int64
	// waiting are entries whose rows the caller leaves out.
	waiting map[*entry]bool
}

// pause is how long an entry waits whose rows cannot be had.
func (h *heldBatch) pause(e *entry) time.Duration {
	if h.waiting[e] {
		return heldBackFor
	}
	return heldLockedFor
}

// leaveOut notes that the caller leaves out a row.
func (h *heldBatch) leaveOut(row *Row) {
	e := h.heads[row.ID]
	if e == nil {
		e = h.keys[Key{Topic: row.Topic, Key: string(row.Key)}]
	}
	if h.waiting == nil {
		h.waiting = map[*entry]bool{}
	}
	h.waiting[e] = true
}

// of returns the entry that a message of the batch came from, and whether it is
// the message that the entry is about.
func (h *heldBatch) of(m *sinks.Message) (e *entry, head bool) {
	if e, ok := h.heads[m.Sequence]; ok {
		return e, true
	}
	return h.keys[Key{Topic: m.Topic, Key: string(m.Key)}], false
}

// only leaves out all entries but one that drains.
func (h *heldBatch) only(id int64) {
	clear(h.heads)
	maps.DeleteFunc(h.keys, func(_ Key, e *entry) bool { return e.id != id })
}

func (h *heldBatch) failures(m *sinks.Message) Failures {
	if e, head := h.of(m); head {
		return Failures{Attempts: e.attempts, Parked: e.state == stateParked}
	}
	return Failures{}
}

// agenda is when the first entry is due, as far as is known. It is safe for
// concurrent use.
type agenda struct {
	mutex sync.Mutex
	any   bool
	next  time.Time
	// again: the last claim of held back messages left some of its work undone.
	again bool
}

// set takes over what the table says.
func (a *agenda) set(next time.Time, any bool) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.next, a.any = next, any
}

// add takes over that one more entry is due then.
func (a *agenda) add(next time.Time) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if !a.any || next.Before(a.next) {
		a.next, a.any = next, true
	}
}

// goOn takes over whether there may be more to do at once.
func (a *agenda) goOn(again bool) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.again = again
}

// read takes over the answer to dueSQL.
func (a *agenda) read(result *pgconn.Result) error {
	if result.Err != nil {
		return result.Err
	}
	if len(result.Rows) == 0 || result.Rows[0][0] == nil {
		a.set(time.Time{}, false)
		return nil
	}
	seconds, err := strconv.ParseFloat(string(result.Rows[0][0]), 64)
	if err != nil {
		return err
	}
	a.set(time.Now().Add(time.Duration(min(seconds, 1e9)*float64(time.Second))), true)
	return nil
}

// HeldDue returns when the first of the held back messages is due, as far as is
// known, and false where none is known of. Another relay's are found out about
// when this one claims. The zero time says that the last claim returned no
// messages because it was busy with entries that have none, and that the next
// one goes on with those.
func (c *Claimer) HeldDue() (time.Time, bool) {
	c.agenda.mutex.Lock()
	defer c.agenda.mutex.Unlock()
	if c.agenda.again {
		return time.Time{}, true
	}
	return c.agenda.next, c.agenda.any
}

// ClaimHeld is Claim for messages that were held back: those that are due to be
// tried again, and those that waited behind one that is out of the way, whose
// keys no other claim returns.
func (c *Claimer) ClaimHeld(ctx context.Context, exclude Exclusion) (Batch, error) {
	c.agenda.goOn(false)
	batch, err := c.onConn(ctx, func(ctx context.Context, conn *pgxpool.Conn) (*rowBatch, error) {
		return c.claimHeld(ctx, conn, exclude)
	})
	if err = c.heldText.failed(err); err != nil {
		return nil, fmt.Errorf("claim from %s: %w", c.statements.parked, err)
	}
	return batch, nil
}

// claimHeld leaves conn to the batch that it returns, and to its caller
// otherwise.
func (c *Claimer) claimHeld(ctx context.Context, conn *pgxpool.Conn, exclude Exclusion) (*rowBatch, error) {
	pg := conn.Conn().PgConn()
	if err := c.prepare(ctx, pg); err != nil {
		return nil, err
	}
	ids, err := c.lockHeld(ctx, pg)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	doubt := c.heldText.now
	if doubt {
		if err := c.rejectHeldText(ctx, pg, ids); err != nil {
			return nil, err
		}
	}
	batch := c.newBatch(conn, exclude)
	fixes, err := c.readHeld(ctx, batch, ids, doubt)
	if err == nil {
		err = c.fix(ctx, pg, fixes, len(batch.messages) == 0)
	}
	if err != nil || len(batch.messages) == 0 {
		batch.recycle()
		return nil, err
	}
	batch.shards = shardsPerClaim // at most
	if c.options.Ordering == OrderTotal {
		batch.shards = Shards
	}
	c.share.took(batch.shards)
	return batch, nil
}

// lockHeld begins the transaction, locks the shards of entries that are due,
// and returns those.
func (c *Claimer) lockHeld(ctx context.Context, pg *pgconn.PgConn) ([]int64, error) {
	batch := &pgconn.Batch{}
	prepared := preparedOn(pg)
	c.begin(prepared, batch)
	parameters := [][]byte{[]byte(c.lockClass), itoa(c.options.BatchSize)}
	if c.lockClass != c.ownClass && c.options.Ordering == OrderKey {
		parameters = append(parameters, []byte(c.ownClass))
	}
	prepared.add(batch, c.held.lock, parameters, nil)
	prepared.add(batch, c.due, nil, nil)
	results, err := pg.ExecBatch(ctx, batch).ReadAll()
	if err != nil {
		return nil, err
	}
	if err := c.agenda.read(results[beginStatements+1]); err != nil {
		return nil, err
	}
	ids := make([]int64, len(results[beginStatements].Rows))
	for i, row := range results[beginStatements].Rows {
		if ids[i], err = strconv.ParseInt(string(row[0]), 10, 64); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// readHeld fills the batch, and returns what to do about entries that have
// nothing to publish. Where text is in doubt it looks for rows that cannot be read first.
func (c *Claimer) readHeld(ctx context.Context, batch *rowBatch, ids []int64, doubt bool) (fixes entryChanges, err error) {
	pg := batch.conn.Conn().PgConn()
	result := preparedOn(pg).query(ctx, pg, c.held.entries, [][]byte{idArray(ids)})
	if result.Err != nil {
		return fixes, result.Err
	}
	held := &heldBatch{heads: map[int64]*entry{}, keys: map[Key]*entry{}, shards: map[int64]int{}}
	batch.held = held
	var heads, drained []int64
	shards := map[int64]bool{}
	for _, row := range result.Rows {
		e, err := scanEntry(row)
		if err != nil {
			return fixes, err
		}
		switch {
		case e.state != stateDraining:
			held.heads[e.id] = e
			heads = append(heads, e.id)
		case e.keyed && c.options.Ordering == OrderKey:
			held.keys[e.key] = e
			drained = append(drained, e.id)
			shards[e.shard] = true
		default: // what waits behind it goes its own way
			fixes.release = append(fixes.release, e.id)
		}
	}
	if len(heads)+len(drained) == 0 {
		return fixes, nil
	}
	// There are no more entries than a batch has rows, so that each shard gets one.
	perShard := (c.options.BatchSize - len(heads)) / max(len(shards), 1)
	parameters := func(perShard, rows int) [][]byte {
		return [][]byte{idArray(heads), idArray(drained), itoa(perShard), itoa(rows), itoa(claimBytes)}
	}
	rows := c.options.BatchSize
	if doubt {
		entry, before, err := c.rejectRowsOfEntries(ctx, pg, held, parameters(perShard, rows), drained)
		if err != nil {
			return fixes, err
		}
		if before > 0 { // up to the first row that cannot be read, of this key alone
			held.only(entry)
			heads, drained, perShard, rows = nil, []int64{entry}, before, before
		}
	}
	if err := c.fill(ctx, batch, c.held.read, parameters(perShard, rows)); err != nil {
		return fixes, err
	}
	c.sift(batch, perShard, &fixes)
	return fixes, nil
}

// sift finds the entries that have nothing to publish: no message any more,
// nothing waiting behind it, or a row that somebody else has locked.
func (c *Claimer) sift(batch *rowBatch, perShard int, fixes *entryChanges) {
	held := batch.held
	has := map[*entry]bool{}
	full := held.found > held.read // who knows what is behind
	for i := range batch.messages {
		e, _ := held.of(&batch.messages[i])
		has[e] = true
	}
	for _, id := range held.absent {
		if e, ok := held.heads[id]; ok && !has[e] {
			has[e] = true
			fixes.postpone(id, held.pause(e))
		}
	}
	for key := range batch.leftOut {
		if e, ok := held.keys[key]; ok && !has[e] {
			has[e] = true
			fixes.postpone(e.id, held.pause(e))
		}
	}
	if batch.full = full; full {
		return
	}
	for id, e := range held.heads {
		if !has[e] {
			c.free(e, id, fixes)
		}
	}
	for key, e := range held.keys {
		// This read's snapshot is of a later transaction than the one that began to
		// drain, and nothing is left of what it sees: see docs/design.md.
		if held.shards[e.shard] >= perShard {
			continue
		}
		if _, out := batch.leftOut[key]; has[e] && !out {
			e.last = true
		} else if !has[e] {
			c.let(e.id, fixes)
		}
	}
}

// free takes an entry's message out of the way of what waits behind it. That may be much in any
// ordering: relays of another one may run beside this one.
func (c *Claimer) free(e *entry, id int64, changes *entryChanges) {
	if e.keyed {
		changes.drain = append(changes.drain, id)
	} else {
		changes.forget = append(changes.forget, id)
	}
}

// let removes an entry that nothing of the pipeline's waits behind.
func (c *Claimer) let(id int64, changes *entryChanges) {
	if c.table.dependsOnType() {
		changes.release = append(changes.release, id)
	} else {
		changes.forget = append(changes.forget, id)
	}
}

func scanEntry(row [][]byte) (*entry, error) {
	id, err := strconv.ParseInt(string(row[0]), 10, 64)
	if err != nil {
		return nil, err
	}
	attempts, err := strconv.Atoi(string(row[2]))
	if err != nil {
		return nil, err
	}
	shard, err := strconv.ParseInt(string(row[5]), 10, 64)
	if err != nil {
		return nil, err
	}
	return &entry{
		id: id, state: string(row[1]), attempts: attempts, shard: shard,
		key: Key{Topic: string(row[3]), Key: string(row[4])}, keyed: string(row[6]) == "t",
	}, nil
}

// entryChanges are changes of entries that no message's outcome asks for.
type entryChanges struct {
	drain, forget []int64
	// release are entries that are forgotten if nothing waits behind them.
	release   []int64
	postponed []int64
	pauses    []time.Duration
}

func (e *entryChanges) postpone(id int64, pause time.Duration) {
	e.postponed, e.pauses = append(e.postponed, id), append(e.pauses, pause)
}

// add puts the statements into the batch.
func (e *entryChanges) add(batch *pgconn.Batch, s *statements) {
	if len(e.drain) > 0 {
		batch.ExecParams(s.expand(drainSQL, "", ""), [][]byte{idArray(e.drain)}, nil, nil, nil)
	}
	if len(e.forget) > 0 {
		batch.ExecParams(s.expand(forgetSQL, "", ""), [][]byte{idArray(e.forget)}, nil, nil, nil)
	}
	if len(e.release) > 0 {
		batch.ExecParams(s.expand(releaseSQL, "", ""), [][]byte{idArray(e.release), []byte("1")}, nil, nil, nil)
	}
	if len(e.postponed) > 0 {
		batch.ExecParams(s.expand(postponeSQL, "", ""), [][]byte{idArray(e.postponed), secondsArray(e.pauses)}, nil, nil, nil)
	}
}

// fix makes the changes, and commits them where the batch has no message whose
// settling would.
func (c *Claimer) fix(ctx context.Context, pg *pgconn.PgConn, fixes entryChanges, commit bool) error {
	all := changes{entryChanges: fixes}
	var changed int64
	var refused *UnrecordedError
	if !all.none() {
		var err error
		if changed, refused, err = recordAll(ctx, pg, &c.statements, true, &all); err != nil {
			return err
		}
		if refused != nil && refused.Rows == nil { // it is not about an entry
			return refused.Err
		}
	}
	if !commit {
		return nil
	}
	if _, err := commitWith(ctx, pg, &pgconn.Batch{}); err != nil {
		return err
	}
	switch {
	case refused != nil:
		return refused.Err
	case changed > 0:
		c.agenda.goOn(true) // there may be as many behind these
	default:
		c.agenda.add(time.Now()) // ask again
	}
	return nil
}
