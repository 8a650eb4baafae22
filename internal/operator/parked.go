package operator

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/outbox"
)

// The states of an entry of the table of parked keys.
const (
	// Retrying: it failed less often than failures.max_attempts.
	Retrying = "retrying"
	// Parked: it waits for its next retry or for an operator.
	Parked = "parked"
	// Draining: it is out of the way, and what waited behind it is being published.
	Draining = "draining"
)

// Entry is a key that is held back by a failed message, or a failed message
// without a key.
type Entry struct {
	Topic       string
	Key         *string
	MessageID   outbox.UUID
	ID          int64
	State       string
	Attempts    int
	Reason      string
	Error       string
	ParkedAt    *time.Time
	NextRetryAt time.Time
	// Waiting is how many rows are held back behind it; nil when there were too
	// many pending rows to count in the time that a list may take.
	Waiting *int64
}

func rowToEntry(row pgx.CollectableRow) (e Entry, err error) {
	err = row.Scan(&e.Topic, &e.Key, (*[16]byte)(&e.MessageID), &e.ID, &e.State, &e.Attempts, &e.Reason, &e.Error, &e.ParkedAt, &e.NextRetryAt)
	return e, err
}

// ListOptions narrow a list.
type ListOptions struct {
	// Topic, unless nil.
	Topic *string
	// Limit is how many entries are returned at most, the oldest; 0: all.
	Limit int
}

func (l ListOptions) limit() *int {
	if l.Limit == 0 {
		return nil
	}
	return &l.Limit
}

// ListParked returns the entries in the states, the oldest first, with what
// waits behind each of them.
func (o *Operator) ListParked(ctx context.Context, list ListOptions, states ...string) (entries []Entry, err error) {
	err = o.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		entries, err = query(ctx, tx, rowToEntry, o.statements.expand(listParkedSQL), states, list.Topic, list.limit())
		if err != nil || len(entries) == 0 {
			return err
		}
		return o.countWaiting(ctx, tx, entries)
	})
	return entries, err
}

// countWaiting fills in Waiting. It is the last thing that tx does.
func (o *Operator) countWaiting(ctx context.Context, tx pgx.Tx, entries []Entry) error {
	counts := map[int64]int64{}
	counted := true
	if o.options.Ordering != source.OrderNone { // then nothing waits for another
		sql := waitingSQL
		if o.options.Ordering == source.OrderTotal {
			sql = waitingTotalSQL
		}
		ids := make([]int64, len(entries))
		for i := range entries {
			ids[i] = entries[i].ID
		}
		var err error
		counted, err = o.bounded(ctx, tx, func() error {
			rows, err := tx.Query(ctx, o.statements.expand(sql), exec, ids)
			if err != nil {
				return err
			}
			var id, n int64
			_, err = pgx.ForEachRow(rows, []any{&id, &n}, func() error { counts[id] = n; return nil })
			return err
		})
		if err != nil {
			return err
		}
	}
	if counted {
		for i := range entries {
			n := counts[entries[i].ID]
			entries[i].Waiting = &n
		}
	}
	return nil
}

// FindParked returns the entries that are selected. All means those in state
// Parked; one that is named may also be Retrying. It returns a NotFoundError
// when something that was named is not there; JustPublished may know why.
func (o *Operator) FindParked(ctx context.Context, s Selection) (entries []Entry, err error) {
	o.gone = nil
	err = o.read(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		switch {
		case s.All:
			entries, err = query(ctx, tx, rowToEntry, o.statements.expand(findAllParkedSQL))
		case len(s.MessageIDs) > 0:
			entries, err = query(ctx, tx, rowToEntry, o.statements.expand(findParkedByMessageSQL), uuids(s.MessageIDs))
		default:
			entries, err = query(ctx, tx, rowToEntry, o.statements.expand(findParkedByKeySQL), s.Topic, s.Key)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	entries = slices.DeleteFunc(entries, func(e Entry) bool { return e.State == Draining })
	if len(s.MessageIDs) > 0 {
		found := make([]outbox.UUID, len(entries))
		for i := range entries {
			found[i] = entries[i].MessageID
		}
		return entries, missing(s.MessageIDs, found, "not parked: it was published, skipped or cancelled, or never failed; nothing was changed")
	}
	if !s.All && len(entries) == 0 {
		return nil, &NotFoundError{What: []string{"this key of topic " + s.Topic}, Where: "not parked; nothing was changed"}
	}
	return entries, nil
}

// RetryParked makes the entries due, so that a relay tries their messages again
// at once. It returns those that it did; only entries that were not named can be
// left out, because they are gone meanwhile.
func (o *Operator) RetryParked(ctx context.Context, s Selection, entries []Entry) ([]Entry, error) {
	return inBatches(ctx, o, s, entries, o.entriesAgain, func(ctx context.Context, tx pgx.Tx, part []Entry) ([]Entry, error) {
		done, err := query(ctx, tx, rowToEntry, o.statements.expand(retryParkedSQL), entryIDs(part))
		if err != nil {
			return nil, err
		}
		return sortEntries(done), o.audit(ctx, tx, "parked retry", entryRecords(done, nil))
	})
}

// Skipped is an entry whose message was taken out of the way.
type Skipped struct {
	Entry
	// DeadLetter: its row was moved to the dead letters. Otherwise there was no
	// pending row: it had been cancelled or marked by hand.
	DeadLetter bool
}

// SkipParked moves the messages of the entries to the dead letters and lets
// their keys go on: a relay then publishes what waited, in order. It waits for a
// relay that is just trying one of them.
func (o *Operator) SkipParked(ctx context.Context, s Selection, entries []Entry) ([]Skipped, error) {
	return inBatches(ctx, o, s, entries, o.entriesAgain, func(ctx context.Context, tx pgx.Tx, part []Entry) ([]Skipped, error) {
		drained, err := query(ctx, tx, rowToEntry, o.statements.expand(drainSQL), entryIDs(part))
		if err != nil {
			return nil, err
		}
		drained = sortEntries(drained)
		hasJSON, err := query(ctx, tx, pgx.RowTo[bool], source.LockedHasJSONSQL(o.options.Schema, o.options.Table))
		if err != nil {
			return nil, err
		}
		bury := strings.ReplaceAll(buryParkedSQL, "{payload}", source.PayloadSQL(hasJSON[0]))
		buried, err := query(ctx, tx, pgx.RowTo[int64], o.statements.expand(bury), entryIDs(drained))
		if err != nil {
			return nil, err
		}
		slices.Sort(buried)
		skipped := make([]Skipped, len(drained))
		for i, e := range drained {
			_, found := slices.BinarySearch(buried, e.ID)
			skipped[i] = Skipped{Entry: e, DeadLetter: found}
		}
		return skipped, o.audit(ctx, tx, "parked skip", entryRecords(drained, func(i int) map[string]any {
			return map[string]any{"dead_letter": skipped[i].DeadLetter}
		}))
	})
}

func entryIDs(entries []Entry) []int64 {
	ids := make([]int64, len(entries))
	for i := range entries {
		ids[i] = entries[i].ID
	}
	return ids
}

func sortEntries(entries []Entry) []Entry {
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Compare(a.ID, b.ID) })
	return entries
}

// entryRecords are the audit's records of the entries; more, unless nil, adds
// to the details.
func entryRecords(entries []Entry, more func(i int) map[string]any) []record {
	records := make([]record, len(entries))
	for i, e := range entries {
		details := map[string]any{"attempts": e.Attempts, "reason": e.Reason, "error": e.Error}
		if more != nil {
			for name, value := range more(i) {
				details[name] = value
			}
		}
		records[i] = record{e.ID, e.MessageID, e.Topic, e.Key, details}
	}
	return records
}
