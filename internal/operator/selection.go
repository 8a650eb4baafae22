package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/outbox"
)

// Selection says which messages an operator means: all of them, those with the
// ids, or those of the topic, for parked ones with the key.
type Selection struct {
	All        bool
	MessageIDs []outbox.UUID
	Topic      string
	Key        *string
}

// named reports whether each of the selected messages was named, so that either
// all of them are dealt with or none.
func (s Selection) named() bool { return len(s.MessageIDs) > 0 || s.Key != nil }

// NotFoundError says that something which was named is not there. Nothing was
// changed.
type NotFoundError struct {
	// What was named: the message ids, or a key or topic in words.
	What []string
	// Where it was looked for, and what may have become of it.
	Where string
}

// Error implements error.
func (e *NotFoundError) Error() string {
	return fmt.Sprintf("%s: %s", strings.Join(e.What, ", "), e.Where)
}

// missing returns a NotFoundError for those of the ids that found does not have.
func missing(ids, found []outbox.UUID, where string) error {
	var what []string
	for _, id := range ids {
		if text := "message " + id.String(); !slices.Contains(found, id) && !slices.Contains(what, text) {
			what = append(what, text)
		}
	}
	if len(what) == 0 {
		return nil
	}
	return &NotFoundError{What: what, Where: where}
}

// uuids is a parameter of type text[] that is cast to uuid[]; null when there
// are none.
func uuids(ids []outbox.UUID) []string {
	var texts []string
	for _, id := range ids {
		texts = append(texts, id.String())
	}
	return texts
}

// inBatches calls act with parts of the items, each in a transaction of its own:
// all at once when they were named, so that all or none are dealt with. Where one
// transaction fails, what the ones before did stays, and is returned. Where
// somebody else works on the items, again tells which are still there, and act is
// called with those.
func inBatches[T, R any](ctx context.Context, o *Operator, s Selection, items []T, again func(context.Context, []T) ([]T, error),
	act func(ctx context.Context, tx pgx.Tx, part []T) ([]R, error),
) ([]R, error) {
	size := o.batchSize
	if s.named() {
		size = max(len(items), 1)
	}
	var done []R
	for part := range slices.Chunk(items, size) {
		for look := 1; len(part) > 0; look++ {
			var results []R
			err := o.write(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
				results, err = act(ctx, tx, part)
				if err == nil && s.named() && len(results) != len(part) {
					err = ErrChanged
				}
				if err == nil {
					err = o.notify(ctx, tx)
				}
				return err
			})
			if err == nil {
				done = append(done, results...)
				break
			}
			if look == looks || !errors.Is(err, ErrChanged) && !errors.Is(err, ErrBusy) {
				return done, err
			}
			if part, err = again(ctx, part); err != nil {
				return done, err
			}
		}
	}
	return done, nil
}
