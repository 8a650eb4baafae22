package delivery

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

// table is an outbox in memory, a Source that a test makes fail as no database
// would on command. A claim takes pending rows in order and, while it is open,
// locks their keys.
type table struct {
	mutex  sync.Mutex
	batch  int // rows per claim
	rows   []*row
	claims []time.Time // one per claim that was asked for
	pings  int
	open   int // claims that are neither settled nor released
	fault  error
	// heldFault is of ClaimHeld alone.
	heldFault error
	settles   error
	// unsettled are rows that were published and could not be settled.
	unsettled map[*row]bool
	resettles []time.Time
	// unrecorded is what Settle answers that has refused messages to record.
	unrecorded error
	// entries are what holds back rows, by the id of the refused one.
	entries map[int64]*heldRow
	total   bool
	dead    []int64
	dropped []int64
}

// heldRow is an entry of the table beside the outbox.
type heldRow struct {
	row      *row
	failures source.Failures
	next     time.Time
}

type row struct {
	message           sinks.Message
	published, locked bool
	refused           error
}

func newTable(batch int) *table {
	return &table{batch: batch, entries: map[int64]*heldRow{}, unsettled: map[*row]bool{}}
}

// insert adds a row; an empty key is null. It returns the row's id.
func (t *table) insert(topic, key string) int64 {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	m := sinks.Message{Sequence: int64(len(t.rows) + 1), Topic: topic}
	if key != "" {
		m.Key = []byte(key)
	}
	t.rows = append(t.rows, &row{message: m})
	return m.Sequence
}

// remove cancels a row, as an operator's DELETE does.
func (t *table) remove(id int64) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.rows = slices.DeleteFunc(t.rows, func(r *row) bool { return r.message.Sequence == id })
}

func (t *table) setFault(err error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.fault = err
}

func (t *table) setHeldFault(err error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.heldFault = err
}

func (t *table) pending() (ids []int64) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	for _, r := range t.rows {
		if !r.published {
			ids = append(ids, r.message.Sequence)
		}
	}
	return ids
}

// claimsSince counts the claims that were asked for from then on.
func (t *table) claimsSince(then time.Time) (n int) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	for _, at := range t.claims {
		if !at.Before(then) {
			n++
		}
	}
	return n
}

func (t *table) pingCount() int {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return t.pings
}

func (t *table) openClaims() int {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return t.open
}

// source returns the rows of a pipeline.
func (t *table) source(p Pipeline) Source {
	return view{t, func(r *row) bool { return p.Everything || p.Filter.Match(r.message.Topic, r.message.Type) }}
}

// view is the rows of a table that one pipeline has.
type view struct {
	*table
	mine func(*row) bool
}

// Claim implements Source.
func (v view) Claim(_ context.Context, exclude source.Exclusion) (source.Batch, error) {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	v.claims = append(v.claims, time.Now())
	return v.take(func(r *row) bool { return !v.holds(r) && !v.excludes(exclude, r) })
}

// ClaimNamed implements Source.
func (v view) ClaimNamed(_ context.Context, ids []int64) (source.Batch, error) {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	return v.take(func(r *row) bool { return !v.holds(r) && slices.Contains(ids, r.message.Sequence) })
}

// take claims the rows of the view that may be published; the mutex is held.
func (v view) take(may func(*row) bool) (source.Batch, error) {
	t := v.table
	if t.fault != nil {
		return nil, t.fault
	}
	busy := map[source.Key]bool{}
	for _, r := range t.rows {
		if r.locked && r.message.Key != nil {
			busy[keyOf(r)] = true
		}
	}
	b := &memoryBatch{table: t}
	for _, r := range t.rows {
		if r.published || r.locked || t.unsettled[r] || busy[keyOf(r)] || !v.mine(r) || !may(r) {
			continue
		}
		if len(b.rows) == t.batch {
			b.full = true
			break
		}
		b.rows = append(b.rows, r)
		b.messages = append(b.messages, r.message)
	}
	if len(b.rows) == 0 {
		return nil, nil
	}
	for _, r := range b.rows {
		r.locked = true
	}
	t.open++
	return b, nil
}

// Notified implements Source.
func (t *table) Notified() {}

// Unsettled implements Source.
func (t *table) Unsettled() int {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return len(t.unsettled)
}

// Resettle implements Source.
func (t *table) Resettle(context.Context) error {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.resettles = append(t.resettles, time.Now())
	if t.settles != nil {
		return &source.UnsettledError{Rows: len(t.unsettled), Others: source.Fails, Err: t.settles}
	}
	for r := range t.unsettled {
		r.published = true
	}
	clear(t.unsettled)
	return nil
}

// holds reports whether the row is held back by one that was refused.
func (t *table) holds(r *row) bool {
	if t.total {
		return len(t.entries) > 0
	}
	for id, e := range t.entries {
		if id == r.message.Sequence || r.message.Key != nil && e.row.message.Key != nil && keyOf(e.row) == keyOf(r) {
			return true
		}
	}
	return false
}

// held returns what is remembered of the messages that hold back others.
func (t *table) held() map[int64]source.Failures {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	held := map[int64]source.Failures{}
	for id, e := range t.entries {
		held[id] = e.failures
	}
	return held
}

// ClaimHeld implements Source.
func (v view) ClaimHeld(_ context.Context, exclude source.Exclusion) (source.Batch, error) {
	t := v.table
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if err := errors.Join(t.fault, t.heldFault); err != nil {
		return nil, err
	}
	b := &memoryBatch{table: t}
	for id, e := range t.entries {
		switch {
		case !slices.Contains(t.rows, e.row): // cancelled
			delete(t.entries, id)
		case !time.Now().Before(e.next) && !e.row.locked && v.mine(e.row) && !t.excludes(exclude, e.row) && len(b.rows) < t.batch:
			b.rows = append(b.rows, e.row)
			b.messages = append(b.messages, e.row.message)
			e.row.locked = true
		}
	}
	if len(b.rows) == 0 {
		return nil, nil
	}
	t.open++
	return b, nil
}

// HeldDue implements Source.
func (t *table) HeldDue() (due time.Time, any bool) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	for _, e := range t.entries {
		if !any || e.next.Before(due) {
			due, any = e.next, true
		}
	}
	return due, any
}

// Ping implements Source.
func (t *table) Ping(context.Context) error {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.pings++
	return t.fault
}

func keyOf(r *row) source.Key {
	return source.Key{Topic: r.message.Topic, Key: string(r.message.Key)}
}

func (t *table) excludes(e source.Exclusion, r *row) bool {
	m := &r.message
	return e.Holds != nil && e.Holds(&source.Row{ID: m.Sequence, Topic: m.Topic, Type: m.Type, Key: m.Key})
}

// memoryBatch is a claim of a table.
type memoryBatch struct {
	table    *table
	rows     []*row
	messages []sinks.Message
	full     bool
}

func (b *memoryBatch) Messages() []sinks.Message { return b.messages }
func (b *memoryBatch) Full() bool                { return b.full }

func (b *memoryBatch) Refused(i int) error { return b.rows[i].refused }

func (b *memoryBatch) Failures(i int) source.Failures {
	b.table.mutex.Lock()
	defer b.table.mutex.Unlock()
	if e, ok := b.table.entries[b.messages[i].Sequence]; ok {
		return e.failures
	}
	return source.Failures{}
}

func (b *memoryBatch) Settle(ctx context.Context, outcomes []source.Outcome) error {
	b.table.mutex.Lock()
	defer b.table.mutex.Unlock()
	b.end()
	if err := errors.Join(ctx.Err(), b.table.settles); err != nil {
		published := 0
		for i, r := range b.rows {
			if outcomes == nil || outcomes[i].Verdict == source.Published {
				b.table.unsettled[r] = true
				published++
			}
		}
		return &source.UnsettledError{Rows: published, Others: source.Fails, Err: err}
	}
	var err error
	for i, r := range b.rows {
		o := source.Outcome{Verdict: source.Published}
		if outcomes != nil {
			o = outcomes[i]
		}
		if b.table.unrecorded != nil && o.Verdict != source.Published && o.Verdict != source.GivenBack {
			err = b.table.unrecorded
			if unrecorded, ok := errors.AsType[*source.UnrecordedError](err); !ok || unrecorded.Lost(r.message.Sequence) {
				continue
			} else if unrecorded.Kept[r.message.Sequence] != nil {
				o.Verdict = source.Parked
			}
		}
		b.table.settle(r, o)
	}
	return err
}

func (t *table) settle(r *row, o source.Outcome) {
	id := r.message.Sequence
	switch o.Verdict {
	case source.Retrying, source.Parked:
		t.entries[id] = &heldRow{row: r, failures: source.Failures{Attempts: o.Attempts, Parked: o.Verdict == source.Parked}, next: time.Now().Add(o.RetryIn)}
		return
	case source.GivenBack:
		if e, ok := t.entries[id]; ok {
			e.next = time.Now().Add(o.RetryIn)
		}
		return
	case source.Published:
		r.published = true
	case source.Dead:
		t.dead = append(t.dead, id)
	case source.Dropped:
		t.dropped = append(t.dropped, id)
	}
	delete(t.entries, id)
	if o.Verdict != source.Published {
		t.rows = slices.DeleteFunc(t.rows, func(other *row) bool { return other == r })
	}
}

func (b *memoryBatch) Release() {
	b.table.mutex.Lock()
	defer b.table.mutex.Unlock()
	b.end()
}

func (b *memoryBatch) end() {
	for _, r := range b.rows {
		r.locked = false
	}
	b.table.open--
}
