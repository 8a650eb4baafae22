package delivery

import (
	"context"
	"errors"
	"regexp"
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
	// unrecorded is what Settle answers that has refused messages to record.
	unrecorded error
	patterns   map[string]*regexp.Regexp
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
	return &table{batch: batch, patterns: map[string]*regexp.Regexp{}, entries: map[int64]*heldRow{}}
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

// Claim implements Source.
func (t *table) Claim(_ context.Context, exclude source.Exclusion) (source.Batch, error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.claims = append(t.claims, time.Now())
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
		if r.published || r.locked || busy[keyOf(r)] || t.holds(r) || t.excludes(exclude, r) {
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
func (t *table) ClaimHeld(_ context.Context, exclude source.Exclusion) (source.Batch, error) {
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
		case !time.Now().Before(e.next) && !e.row.locked && !t.excludes(exclude, e.row) && len(b.rows) < t.batch:
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
	if slices.Contains(e.Topics, r.message.Topic) || slices.Contains(e.IDs, r.message.Sequence) {
		return true
	}
	if r.message.Key != nil && slices.Contains(e.Keys, keyOf(r)) {
		return true
	}
	for _, rule := range e.Rules {
		if t.matches(rule.TopicPattern, r.message.Topic) && t.matches(rule.TypePattern, r.message.Type) {
			return rule.HoldBack
		}
	}
	return false
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
	err := errors.Join(ctx.Err(), b.table.settles)
	if err != nil {
		return err
	}
	for i, r := range b.rows {
		o := source.Outcome{Verdict: source.Published}
		if outcomes != nil {
			o = outcomes[i]
		}
		if b.table.unrecorded != nil && o.Verdict != source.Published && o.Verdict != source.GivenBack {
			err = b.table.unrecorded
			continue
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

func (t *table) matches(pattern, text string) bool {
	compiled, ok := t.patterns[pattern]
	if !ok {
		compiled = regexp.MustCompile(pattern)
		t.patterns[pattern] = compiled
	}
	return compiled.MatchString(text)
}
