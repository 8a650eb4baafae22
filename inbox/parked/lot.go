package parked

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/internal/sqlstate"
)

// maxError bounds the size of an error that is kept, in bytes.
const maxError = 4000

// maxPlace bounds the name of a source in an identity, which an index holds.
const maxPlace = 1000

// Lot is where the messages of one consumer are parked. It may be used
// concurrently. db is the inbox's database: a *pgxpool.Pool or *pgx.Conn; with
// a pgx.Tx everything is part of the caller's transaction.
type Lot struct {
	// Inbox says who consumes and where the tables are. Required.
	Inbox *inbox.Inbox
}

// Message is a parked message.
type Message struct {
	// Number names it, and ascends in the order in which messages were parked.
	Number int64
	// Message is as it was received, but for headers with characters that
	// PostgreSQL cannot hold, which became U+FFFD.
	inbox.Message
	// Attempts is how often it failed, retries included, and Error why, the
	// last time.
	Attempts               int
	Error                  string
	ParkedAt, LastFailedAt time.Time
}

// ErrNotFound is what errors.Is finds when no message of the consumer has the
// number: somebody else has retried or discarded it.
var ErrNotFound = errors.New("no such message is parked")

// Park puts a message aside. When it returns nil the message is safe, and may
// be acknowledged. A message that is parked already is not parked twice: its
// attempts are added, and its error replaced.
func (l Lot) Park(ctx context.Context, db inbox.Beginner, message inbox.Message, attempts int, reason error) error {
	headers := make(map[string]string, len(message.Headers))
	for name, value := range message.Headers {
		headers[storable(name)] = storable(value)
	}
	encoded, err := json.Marshal(headers)
	if err != nil {
		return err
	}
	id, err := l.identify(message)
	var identity, messageID, source, partition, offset, written any
	if err == nil {
		messageID = id.String()
		identity = messageID
	}
	if message.Source.Name != "" {
		source = storable(message.Source.Name)
		if message.Source.HasOffset {
			partition, offset = message.Source.Partition, message.Source.Offset
			if identity == nil {
				identity = place(message.Source)
			}
		}
	}
	if !message.Time.IsZero() {
		written = message.Time
	}
	return l.transact(ctx, db, "park a message in", func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, l.statement(parkSQL), l.Inbox.Consumer, identity, messageID, storable(message.Topic), message.Key,
			storable(message.Type), message.Payload, storable(message.ContentType), string(encoded), message.Sequence, written,
			message.Replayed, source, partition, offset, attempts, shorten(reason.Error()))
		return err
	})
}

// place is where a message was read, as an index can hold it.
func place(source inbox.Source) string {
	name := storable(source.Name)
	if len(name) > maxPlace {
		name = fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(name)))
	}
	return fmt.Sprintf("%s-%d@%d", name, source.Partition, source.Offset)
}

// identify is Inbox.Identify. An Inbox.IDOf that panics may be why the message
// is parked.
func (l Lot) identify(message inbox.Message) (id inbox.ID, err error) {
	defer func() {
		if value := recover(); value != nil {
			err = fmt.Errorf("%w: Inbox.IDOf panicked: %v", inbox.ErrNoID, value)
		}
	}()
	return l.Inbox.Identify(message)
}

// Filter chooses messages of the consumer.
type Filter struct {
	// Topic, unless empty, is the messages'.
	Topic string
	// After is the number after which to begin: the last one of the page
	// before.
	After int64
	// Limit bounds the number of messages, which are in memory with their
	// payloads; 0 means 100.
	Limit int
}

// List returns parked messages in the order in which they were parked.
func (l Lot) List(ctx context.Context, db inbox.Beginner, filter Filter) (messages []Message, err error) {
	err = l.transact(ctx, db, "list messages of", func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, l.statement(listSQL), l.Inbox.Consumer, filter.Topic, filter.After, cmp.Or(filter.Limit, 100))
		if err != nil {
			return err
		}
		messages, err = pgx.CollectRows(rows, scan)
		return err
	})
	return messages, err
}

// Retry processes a parked message through the inbox, in one transaction with
// its removal. When the handler fails nothing of its effect remains, the
// message stays parked with the new error, which is returned. inbox.Duplicate
// means that the message had been delivered again and processed: it is removed.
// A panic of the handler goes on, and the message stays as it was.
func (l Lot) Retry(ctx context.Context, db inbox.Beginner, number int64, handler inbox.Handler) (result inbox.Result, err error) {
	var failed error
	err = l.transact(ctx, db, "retry a message of", func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, l.statement(takeSQL), l.Inbox.Consumer, number)
		if err != nil {
			return err
		}
		message, err := pgx.CollectExactlyOneRow(rows, scan)
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("number %d: %w", number, ErrNotFound)
		}
		if err != nil {
			return err
		}
		if result, failed = l.Inbox.Process(ctx, tx, message.Message, handler); failed != nil {
			_, err = tx.Exec(ctx, l.statement(failSQL), l.Inbox.Consumer, number, shorten(failed.Error()))
			return err
		}
		_, err = tx.Exec(ctx, l.statement(removeSQL), l.Inbox.Consumer, number)
		return err
	})
	if failed != nil {
		return inbox.Unprocessed, failed
	}
	if err != nil {
		return inbox.Unprocessed, err
	}
	return result, nil
}

// RetryAll retries all messages that the filter chooses, Limit aside, each in a
// transaction of its own, in the order in which they were parked. After one has
// failed the later ones of its topic and key are left alone. It returns the
// number of those that are no longer parked, and the errors of the others,
// joined.
func (l Lot) RetryAll(ctx context.Context, db inbox.Beginner, filter Filter, handler inbox.Handler) (done int, err error) {
	type key struct{ topic, key string }
	stuck := make(map[key]bool)
	var errs []error
	for {
		page, err := l.List(ctx, db, filter)
		if err != nil || len(page) == 0 {
			return done, errors.Join(append(errs, err)...)
		}
		for _, m := range page {
			filter.After = m.Number
			k := key{m.Topic, string(m.Key)}
			if m.Key != nil && stuck[k] {
				continue
			}
			switch _, err := l.Retry(ctx, db, m.Number, handler); {
			case err == nil:
				done++
			case ctx.Err() != nil:
				return done, errors.Join(append(errs, context.Cause(ctx))...)
			case !errors.Is(err, ErrNotFound):
				stuck[k] = true
				errs = append(errs, fmt.Errorf("number %d: %w", m.Number, err))
			}
		}
	}
}

// Discard removes a parked message for good. It is not marked as seen: when it
// is delivered again it is processed again.
func (l Lot) Discard(ctx context.Context, db inbox.Beginner, number int64) error {
	return l.transact(ctx, db, "discard a message of", func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, l.statement(removeSQL), l.Inbox.Consumer, number)
		if err == nil && tag.RowsAffected() == 0 {
			err = fmt.Errorf("number %d: %w", number, ErrNotFound)
		}
		return err
	})
}

func scan(row pgx.CollectableRow) (m Message, err error) {
	var id, source *string
	var partition *int32
	var offset *int64
	var written *time.Time
	var headers string
	err = row.Scan(&m.Number, &id, &m.Topic, &m.Key, &m.Type, &m.Payload, &m.ContentType, &headers, &m.Sequence, &written,
		&m.Replayed, &source, &partition, &offset, &m.Attempts, &m.Error, &m.ParkedAt, &m.LastFailedAt)
	if err != nil {
		return m, err
	}
	if id != nil {
		if m.ID, err = inbox.ParseID(*id); err != nil {
			return m, err
		}
	}
	if written != nil {
		m.Time = *written
	}
	if source != nil {
		m.Source.Name = *source
	}
	if partition != nil && offset != nil {
		m.Source.Partition, m.Source.Offset, m.Source.HasOffset = *partition, *offset, true
	}
	return m, json.Unmarshal([]byte(headers), &m.Headers)
}

func (l Lot) statement(format string) string { return fmt.Sprintf(format, l.identifier()) }

func (l Lot) identifier() string {
	return pgx.Identifier{cmp.Or(l.Inbox.Schema, "public"), cmp.Or(l.Inbox.Table, "inbox") + "_parked"}.Sanitize()
}

// transact runs do in a transaction, and explains its error.
func (l Lot) transact(ctx context.Context, db inbox.Beginner, what string, do func(pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, db, do)
	if err == nil {
		return nil
	}
	wrapped := fmt.Errorf("inbox: %s %s: %w", what, l.identifier(), err)
	switch sqlstate.Of(err) {
	case "42P01", "3F000": // undefined_table, invalid_schema_name
		return fmt.Errorf("%w: run `relay migrate --only inbox` on this database", wrapped)
	case "42501": // insufficient_privilege
		return fmt.Errorf("%w: as the owner, GRANT SELECT, INSERT, UPDATE, DELETE ON %s to this role", wrapped, l.identifier())
	}
	return wrapped
}

// storable is text as PostgreSQL can hold it.
func storable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// shorten returns the beginning of an error.
func shorten(text string) string {
	text = storable(text)
	if len(text) <= maxError {
		return text
	}
	end := maxError
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}
