package operator

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/outbox"
)

const (
	// looks is how often a command looks at what somebody else is working on: each
	// time it waits for that up to lockTimeout.
	looks = 4
	// lookPause is between two of them: a relay changes an entry in a transaction of
	// milliseconds.
	lookPause = 50 * time.Millisecond
)

// Gone is a message that was selected, and that somebody else dealt with before
// the command could: mostly a relay that retried it by itself.
type Gone struct {
	Topic     string
	Key       *string
	MessageID outbox.UUID
	ID        int64
	// What became of it.
	What string
}

// Gone tells what became of the messages that the last write was to change, and
// did not, because they were dealt with meanwhile.
func (o *Operator) Gone() []Gone { return o.gone }

// JustPublished explains a NotFoundError of FindParked, which found the entries:
// whether a relay published all that is missing within the last minute, and so came
// before the command. Then Gone names it.
func (o *Operator) JustPublished(ctx context.Context, s Selection, entries []Entry) (bool, error) {
	want := map[outbox.UUID]bool{}
	for _, id := range s.MessageIDs {
		want[id] = true
	}
	for _, e := range entries {
		delete(want, e.MessageID)
	}
	var ids []outbox.UUID
	for id := range want {
		ids = append(ids, id)
	}
	var topic *string
	if s.Key != nil {
		topic = &s.Topic
	}
	var rows []Gone
	err := o.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		_, err := o.bounded(ctx, tx, func() (err error) {
			rows, err = query(ctx, tx, func(row pgx.CollectableRow) (g Gone, err error) {
				g.What = "was published meanwhile"
				return g, row.Scan(&g.Topic, &g.Key, (*[16]byte)(&g.MessageID), &g.ID)
			}, o.statements.expand(justPublishedSQL), uuids(ids), topic, s.Key)
			return err
		})
		return err
	})
	switch {
	case err != nil || len(rows) == 0:
		return false, err
	case s.Key != nil: // the last one: the key flows
		o.gone = append(o.gone, rows[0])
		return true, nil
	}
	for _, g := range rows {
		delete(want, g.MessageID)
	}
	if len(want) > 0 {
		return false, nil
	}
	o.gone = append(o.gone, rows...)
	return true, nil
}

// fate is where a message is now.
type fate struct {
	state *string // of its entry
	dead  bool
	row   *string // pending or published
}

// fates look for the messages.
func (o *Operator) fates(ctx context.Context, ids []int64, messages []string) (map[int64]fate, error) {
	select { // only then it is worth it
	case <-time.After(lookPause):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	fates := map[int64]fate{}
	err := o.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, o.statements.expand(fateSQL), exec, ids, messages)
		if err != nil {
			return err
		}
		var id int64
		var f fate
		_, err = pgx.ForEachRow(rows, []any{&id, &f.state, &f.dead, &f.row}, func() error {
			fates[id] = f
			return nil
		})
		return err
	})
	return fates, err
}

// what says it in words.
func (f fate) what() string {
	switch {
	case f.dead:
		return "was moved to the dead letters meanwhile"
	case f.row == nil:
		return "is not in the outbox any more: it was published and deleted, or cancelled, meanwhile"
	case *f.row == "published":
		return "was published meanwhile"
	case f.state != nil:
		return "was taken out of the way meanwhile: its key goes on"
	}
	return "is not held back any more: a relay publishes it with its next batch"
}

// entriesAgain returns those of the entries that still hold a message back.
func (o *Operator) entriesAgain(ctx context.Context, entries []Entry) (left []Entry, err error) {
	messages := make([]string, len(entries))
	for i := range entries {
		messages[i] = entries[i].MessageID.String()
	}
	fates, err := o.fates(ctx, entryIDs(entries), messages)
	for _, e := range entries {
		if f := fates[e.ID]; f.state != nil && *f.state != Draining {
			left = append(left, e)
		} else if err == nil {
			o.gone = append(o.gone, Gone{e.Topic, e.Key, e.MessageID, e.ID, f.what()})
		}
	}
	return left, err
}

// What a command does to dead letters.
const (
	reviving   = "put back"
	discarding = "discarded"
)

// lettersAgain returns a function that returns those of the letters that are
// still there, or an error where one of the others cannot be what the command
// was to make of it.
func (o *Operator) lettersAgain(intent string) func(context.Context, []Letter) ([]Letter, error) {
	return func(ctx context.Context, letters []Letter) (left []Letter, err error) {
		fates, err := o.fates(ctx, letterIDs(letters), letterUIDs(letters))
		if err != nil {
			return nil, err
		}
		for _, l := range letters {
			f := fates[l.ID]
			if f.dead {
				left = append(left, l)
				continue
			}
			became, what := discarding, "was discarded meanwhile"
			switch {
			case f.row != nil:
				became, what = reviving, "was put back into the outbox meanwhile, by another operator, and is "+*f.row
			case o.options.OnPublished == source.Delete: // both look alike
				became, what = intent, "is no dead letter any more: another operator discarded it, or put it back and it was published"
			}
			if became != intent {
				return nil, fmt.Errorf("message %s %s: %w", l.MessageID, what, ErrChanged)
			}
			o.gone = append(o.gone, Gone{l.Topic, l.Key, l.MessageID, l.ID, what})
		}
		return left, nil
	}
}
