package operator

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/outbox"
)

// Filter selects published rows. What is set must hold all together.
type Filter struct {
	Topic, Key *string
	// Since is included, Until is not; both compare with created_at.
	Since, Until *Moment
	MessageIDs   []outbox.UUID
}

// Moment is a time, or a time span before now on the server's clock.
type Moment struct {
	At  time.Time
	Ago time.Duration
}

func (m *Moment) resolve(now time.Time) *time.Time {
	if m == nil {
		return nil
	}
	at := m.At
	if at.IsZero() {
		at = now.Add(-m.Ago)
	}
	return &at
}

// details are the filter as the audit keeps it.
func (f Filter) details(now time.Time) map[string]any {
	details := map[string]any{}
	if f.Topic != nil {
		details["topic"] = *f.Topic
	}
	if f.Key != nil {
		details["key"] = *f.Key
	}
	if since := f.Since.resolve(now); since != nil {
		details["since"] = since.UTC()
	}
	if until := f.Until.resolve(now); until != nil {
		details["until"] = until.UTC()
	}
	if len(f.MessageIDs) > 0 {
		details["by"] = "message id"
	}
	return details
}

// TopicCount is how many messages of a topic were or would be replayed.
type TopicCount struct {
	Topic    string
	Messages int64
}

// TooManyError says that a replay selects more than its limit. Nothing was
// changed.
type TooManyError struct{ Limit int }

// Error implements error.
func (e *TooManyError) Error() string {
	return fmt.Sprintf("more than %d messages are selected; nothing was changed: narrow the selection, or raise --limit", e.Limit)
}

const notReplayable = "not among the published rows that are selected: it is still pending, was removed after its retention, or never was there; nothing was changed"

// CountReplay counts what Replay would publish again, by topic, whatever the
// limit. It returns a NotFoundError when a message that was named is not there.
func (o *Operator) CountReplay(ctx context.Context, f Filter) (counts []TopicCount, err error) {
	err = o.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		_, arguments, err := f.arguments(ctx, tx)
		if err != nil {
			return err
		}
		counts, err = query(ctx, tx, pgx.RowToStructByPos[TopicCount], o.statements.expand(countReplaySQL), arguments...)
		if err != nil || len(f.MessageIDs) == 0 {
			return err
		}
		found, err := query(ctx, tx, func(row pgx.CollectableRow) (id outbox.UUID, err error) {
			return id, row.Scan((*[16]byte)(&id))
		}, o.statements.expand(foundReplaySQL), arguments...)
		if err != nil {
			return err
		}
		return missing(f.MessageIDs, found, notReplayable)
	})
	return counts, err
}

// Replay makes the published rows that the filter selects pending again, each
// to be sent with the header message-replayed, all or none. It returns a TooManyError when
// they are more than limit, and a NotFoundError when one that was named is not
// there. A relay finds them within about a second. They come after what was
// published before them, whatever their ids; one whose key is held back waits.
func (o *Operator) Replay(ctx context.Context, f Filter, limit int) (rows []Letter, err error) {
	err = o.write(ctx, func(ctx context.Context, tx pgx.Tx) error {
		now, arguments, err := f.arguments(ctx, tx)
		if err != nil {
			return err
		}
		rows, err = query(ctx, tx, rowToLetter, o.statements.expand(lockReplaySQL), append(arguments, limit+1)...)
		if err != nil {
			return err
		}
		if len(rows) > limit {
			rows = nil
			return &TooManyError{limit}
		}
		found := make([]outbox.UUID, len(rows))
		for i := range rows {
			found[i] = rows[i].MessageID
		}
		if err := missing(f.MessageIDs, found, notReplayable); err != nil || len(rows) == 0 {
			return err
		}
		if _, err := tx.Exec(ctx, o.statements.expand(replaySQL), exec, letterIDs(rows)); err != nil {
			return err
		}
		records := make([]record, len(rows))
		for i, r := range rows {
			records[i] = record{r.ID, r.MessageID, r.Topic, r.Key, f.details(now)}
		}
		if err := o.audit(ctx, tx, "replay", records); err != nil {
			return err
		}
		return o.notify(ctx, tx)
	})
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// arguments are the parameters of replayableSQL, and the server's time.
func (f Filter) arguments(ctx context.Context, tx pgx.Tx) (now time.Time, arguments []any, err error) {
	if err := tx.QueryRow(ctx, nowSQL, exec).Scan(&now); err != nil {
		return now, nil, err
	}
	return now, []any{f.Topic, f.Key, f.Since.resolve(now), f.Until.resolve(now), uuids(f.MessageIDs)}, nil
}

// CountByTopic counts the rows of each topic, in the topics' order.
func CountByTopic(rows []Letter) []TopicCount {
	counts := map[string]int64{}
	for _, r := range rows {
		counts[r.Topic]++
	}
	var list []TopicCount
	for _, topic := range slices.Sorted(maps.Keys(counts)) {
		list = append(list, TopicCount{topic, counts[topic]})
	}
	return list
}
