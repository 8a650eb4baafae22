package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/outbox"
)

// DeadLetter is a message that was given up.
type DeadLetter struct {
	MessageID outbox.UUID
	ID        int64
	Topic     string
	Key       *string
	Type      string
	Attempts  int
	Error     string
	DeadAt    time.Time
}

// DeadMessage is a dead letter with all that it holds.
type DeadMessage struct {
	DeadLetter
	Reason        string
	Payload       []byte // nil: null
	ContentType   string
	Headers       map[string]string
	AvailableAt   Timestamp // not Valid: null
	CreatedAt     Timestamp
	FirstFailedAt time.Time
	LastFailedAt  time.Time
}

// Letter is what identifies a dead letter.
type Letter struct {
	MessageID outbox.UUID
	ID        int64
	Topic     string
	Key       *string
	CreatedAt Timestamp
}

// Timestamp is a time that a writer chose: it may be infinite.
type Timestamp = pgtype.Timestamptz

func inUTC(t Timestamp) Timestamp {
	t.Time = t.Time.UTC()
	return t
}

func (l *Letter) scans() []any {
	return []any{(*[16]byte)(&l.MessageID), &l.ID, &l.Topic, &l.Key, &l.CreatedAt}
}

func rowToLetter(row pgx.CollectableRow) (l Letter, err error) {
	return l, row.Scan(l.scans()...)
}

// ListDead calls each with the dead letters, the oldest first, as they arrive:
// there may be very many.
func (o *Operator) ListDead(ctx context.Context, list ListOptions, each func(DeadLetter) error) error {
	return o.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, o.statements.expand(listDeadSQL), exec, list.Topic, list.limit())
		if err != nil {
			return err
		}
		var d DeadLetter
		_, err = pgx.ForEachRow(rows, []any{(*[16]byte)(&d.MessageID), &d.ID, &d.Topic, &d.Key, &d.Type, &d.Attempts, &d.Error, &d.DeadAt}, func() error {
			return each(d)
		})
		return err
	})
}

// FindDead returns the dead letters that are selected, in ascending id. It
// returns a NotFoundError when something that was named is not there.
func (o *Operator) FindDead(ctx context.Context, s Selection) (letters []Letter, err error) {
	o.gone = nil
	err = o.read(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		switch {
		case s.All:
			letters, err = query(ctx, tx, rowToLetter, o.statements.expand(findAllDeadSQL))
		case len(s.MessageIDs) > 0:
			letters, err = query(ctx, tx, rowToLetter, o.statements.expand(findDeadByMessageSQL), uuids(s.MessageIDs))
		default:
			letters, err = query(ctx, tx, rowToLetter, o.statements.expand(findDeadByTopicSQL), s.Topic)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(s.MessageIDs) > 0 {
		found := make([]outbox.UUID, len(letters))
		for i := range letters {
			found[i] = letters[i].MessageID
		}
		return letters, missing(s.MessageIDs, found, "not a dead letter; nothing was changed")
	}
	if !s.All && len(letters) == 0 {
		return nil, &NotFoundError{What: []string{"topic " + s.Topic}, Where: "it has no dead letters; nothing was changed"}
	}
	return letters, nil
}

// ShowDead calls each with all that the dead letters hold, the oldest first.
// One that is gone meanwhile is left out.
func (o *Operator) ShowDead(ctx context.Context, letters []Letter, each func(DeadMessage) error) error {
	return o.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, o.statements.expand(showDeadSQL), exec, letterIDs(letters), letterUIDs(letters))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var m DeadMessage // of its own: scanning may use a payload's memory again
			if err := rows.Scan((*[16]byte)(&m.MessageID), &m.ID, &m.Topic, &m.Key, &m.Type, &m.Attempts, &m.Error, &m.DeadAt, &m.Reason,
				&m.Payload, &m.ContentType, &m.Headers, &m.AvailableAt, &m.CreatedAt, &m.FirstFailedAt, &m.LastFailedAt); err != nil {
				return err
			}
			m.AvailableAt, m.CreatedAt = inUTC(m.AvailableAt), inUTC(m.CreatedAt)
			if err := each(m); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// DiscardDead deletes the dead letters for good. The audit keeps what they were,
// but for payload and headers.
func (o *Operator) DiscardDead(ctx context.Context, s Selection, letters []Letter) ([]Letter, error) {
	return inBatches(ctx, o, s, letters, o.lettersAgain(discarding), func(ctx context.Context, tx pgx.Tx, part []Letter) ([]Letter, error) {
		rows, err := tx.Query(ctx, o.statements.expand(discardSQL), exec, letterIDs(part), letterUIDs(part))
		if err != nil {
			return nil, err
		}
		var done []Letter
		var records []record
		var l Letter
		var kind, reason, text string
		var attempts int
		_, err = pgx.ForEachRow(rows, append(l.scans(), &kind, &reason, &text, &attempts), func() error {
			done = append(done, l)
			records = append(records, record{l.ID, l.MessageID, l.Topic, l.Key, map[string]any{
				"type": kind, "reason": reason, "error": text, "attempts": attempts, "created_at": inUTC(l.CreatedAt),
			}})
			return nil
		})
		if err != nil {
			return nil, err
		}
		return done, o.audit(ctx, tx, "dead discard", records)
	})
}

// Revived is a dead letter that is in the outbox again.
type Revived struct {
	Letter
	// InOrder: whether it comes before all later messages of its key. false: some
	// of those were published already. nil: that cannot be known, or it has no key,
	// and with it no order.
	InOrder *bool

	reason, error               string
	firstFailedAt, lastFailedAt time.Time
	fresh, taken                bool
	// back is when it was in the outbox again, by the server's clock.
	back time.Time
}

// IDTakenError says that dead letters cannot go back, because their ids were
// given to other rows: ids began anew, or a backup was restored.
type IDTakenError struct{ Letters []Letter }

// ErrNotTaken says that the outbox table took a dead letter without an error, and
// does not have it.
var ErrNotTaken = errors.New("the outbox table did not take the message: a trigger, a rule or a unique index of its owner is in the way; nothing was changed: let it take rows with this id and message id")

// Error implements error.
func (e *IDTakenError) Error() string {
	what := make([]string, len(e.Letters))
	for i, l := range e.Letters {
		what[i] = fmt.Sprintf("message %s: the outbox has another row with its id %d", l.MessageID, l.ID)
	}
	return strings.Join(what, "; ") + ": nothing was changed; insert what `relay dead show` has as a new message, then discard the dead letter"
}

// RetryDead puts the dead letters back into the outbox, as they were, and holds
// their keys until they are published: no message of the key that is pending now
// or comes later overtakes.
func (o *Operator) RetryDead(ctx context.Context, s Selection, letters []Letter) ([]Revived, error) {
	done, err := inBatches(ctx, o, s, letters, o.lettersAgain(reviving), o.retryDead)
	// What was put back is there, whether or not its order can be told.
	if judgeErr := o.judgeOrder(ctx, done); err == nil && judgeErr != nil {
		err = fmt.Errorf("%d messages are in the outbox again; looking for later ones of their keys: %w", len(done), judgeErr)
	}
	return done, err
}

func (o *Operator) retryDead(ctx context.Context, tx pgx.Tx, part []Letter) ([]Revived, error) {
	// A relay that has a later row of the key under way must have ended: whether
	// it is published then can be seen.
	class := source.LockClass(o.options.Schema, o.options.Table)
	if _, err := tx.Exec(ctx, o.statements.expand(lockShardsSQL), exec, letterIDs(part), letterUIDs(part), class); err != nil {
		return nil, err
	}
	revived, err := query(ctx, tx, func(row pgx.CollectableRow) (r Revived, err error) {
		return r, row.Scan(append(r.scans(), &r.reason, &r.error, &r.firstFailedAt, &r.lastFailedAt, &r.fresh, &r.taken)...)
	}, o.statements.expand(reviveSQL), letterIDs(part), letterUIDs(part))
	if err != nil {
		return nil, err
	}
	taken := &IDTakenError{}
	for i := range revived {
		switch {
		case revived[i].taken:
			taken.Letters = append(taken.Letters, revived[i].Letter)
		case !revived[i].fresh:
			return nil, ErrNotTaken
		}
	}
	if len(taken.Letters) > 0 {
		return nil, taken
	}
	if err := o.hold(ctx, tx, revived); err != nil {
		return nil, err
	}
	var back time.Time
	if err := tx.QueryRow(ctx, clockSQL, exec).Scan(&back); err != nil {
		return nil, err
	}
	records := make([]record, len(revived))
	for i := range revived {
		r := &revived[i]
		r.back = back
		records[i] = record{r.ID, r.MessageID, r.Topic, r.Key, map[string]any{"reason": r.reason, "error": r.error}}
	}
	return revived, o.audit(ctx, tx, "dead retry", records)
}

// judgeOrder finds out which of the messages come after later ones of their
// keys. It locks nothing: when they were put back nothing of their keys was
// under way, so what overtook them was published before.
func (o *Operator) judgeOrder(ctx context.Context, revived []Revived) error {
	if o.options.Ordering == source.OrderNone {
		return nil
	}
	for start := 0; start < len(revived); {
		end := start + 1
		for end < len(revived) && revived[end].back.Equal(revived[start].back) {
			end++
		}
		if err := o.judge(ctx, revived[start:end]); err != nil {
			return err
		}
		start = end
	}
	return nil
}

// judge is judgeOrder for messages that were put back in one transaction.
func (o *Operator) judge(ctx context.Context, revived []Revived) error {
	letters := make([]Letter, len(revived))
	for i := range revived {
		letters[i] = revived[i].Letter
	}
	orders, err := o.orders(ctx, letters, revived[0].back)
	for i := range revived {
		revived[i].InOrder = orders[revived[i].ID]
	}
	return err
}

// Overtaken counts the dead letters that would come after later messages of
// their keys if they were retried now, and those of which that cannot be known.
func (o *Operator) Overtaken(ctx context.Context, letters []Letter) (overtaken, unknown int, err error) {
	if o.options.Ordering == source.OrderNone || len(letters) == 0 {
		return 0, 0, nil
	}
	var now time.Time
	err = o.read(ctx, func(ctx context.Context, tx pgx.Tx) error { return tx.QueryRow(ctx, clockSQL, exec).Scan(&now) })
	if err != nil {
		return 0, 0, err
	}
	orders, err := o.orders(ctx, letters, now)
	for _, l := range letters {
		switch inOrder := orders[l.ID]; {
		case !o.ordered(l):
		case inOrder == nil:
			unknown++
		case !*inOrder:
			overtaken++
		}
	}
	return overtaken, unknown, err
}

// ordered reports whether the order of the message means anything.
func (o *Operator) ordered(l Letter) bool {
	return o.options.Ordering == source.OrderTotal || l.Key != nil && o.options.Ordering != source.OrderNone
}

// orders tells, by id, of which of the messages a later one was published before
// the time (false), of which none was (true); what cannot be known is not there.
func (o *Operator) orders(ctx context.Context, letters []Letter, before time.Time) (map[int64]*bool, error) {
	var ids []int64
	var topics, keys []string
	for _, l := range letters {
		if !o.ordered(l) {
			continue
		}
		ids, topics = append(ids, l.ID), append(topics, l.Topic)
		key := ""
		if l.Key != nil {
			key = *l.Key
		}
		keys = append(keys, key)
	}
	orders := map[int64]*bool{}
	if len(ids) == 0 || o.options.OnPublished == source.Delete {
		return orders, nil
	}
	sql := overtakenSQL
	if o.options.Ordering == source.OrderTotal {
		sql = overtakenTotalSQL
	}
	var overtaken []int64
	looked := false
	err := o.read(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		looked, err = o.bounded(ctx, tx, func() (err error) {
			overtaken, err = query(ctx, tx, pgx.RowTo[int64], o.statements.expand(sql), ids, topics, keys, before)
			return err
		})
		return err
	})
	if err != nil || !looked {
		return orders, err
	}
	slices.Sort(overtaken)
	for _, l := range letters {
		if !o.ordered(l) {
			continue
		}
		_, found := slices.BinarySearch(overtaken, l.ID)
		// A later row that is past its retention may be gone. An age that cannot be
		// true says nothing.
		age := before.Sub(l.CreatedAt.Time)
		if pruned := o.options.Retention > 0 && (age > o.options.Retention || age < 0); found || !pruned {
			inOrder := !found
			orders[l.ID] = &inOrder
		}
	}
	return orders, nil
}

func letterIDs(letters []Letter) []int64 {
	ids := make([]int64, len(letters))
	for i := range letters {
		ids[i] = letters[i].ID
	}
	return ids
}

func letterUIDs(letters []Letter) []string {
	texts := make([]string, len(letters))
	for i := range letters {
		texts[i] = letters[i].MessageID.String()
	}
	return texts
}
