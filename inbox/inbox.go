package inbox

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// DefaultRetention is how long ids are kept unless Inbox.Retention says
// otherwise: a day more than a Kafka topic keeps its records by default, which is
// up to retention.ms and segment.ms together, a week each, since a segment goes
// only when its newest record is old enough.
const DefaultRetention = 15 * 24 * time.Hour

// defaultRetries bounds how often a transaction is run again.
const defaultRetries = 5

// Inbox remembers which messages a consumer has processed. It has no
// connection or goroutine of its own, and may be used concurrently as long as
// nobody changes its fields.
type Inbox struct {
	// Consumer names who processes the messages. Each consumer processes each
	// message once, so give services, and parts of one service that handle the
	// same messages independently, names of their own; all instances of one
	// consumer share a name. Required. Changing it makes all messages new.
	Consumer string
	// Schema and Table name the inbox as they are in the database, unquoted;
	// empty means "public" and "inbox".
	Schema, Table string
	// Retention is how long Prune keeps ids, and thus the time in which a
	// duplicate is recognised. It should be longer than the broker can deliver
	// a message again. 0 means DefaultRetention.
	Retention time.Duration
	// Retries is how often a transaction that failed by a serialization error
	// or a deadlock (SQLSTATE 40001, 40P01) is run again, handler included,
	// after short random pauses. 0 means 5, a negative number means never.
	Retries int
	// Order is what happens to a message that comes after a later one of its
	// topic and key.
	Order OrderCheck
	// IDOf, unless nil, computes the identity of every message, instead of
	// Message.ID. It must be a function of what the producer sent, never of
	// when and where it was received. IDFrom makes ids of names.
	IDOf func(Message) (ID, error)
	// Propagator extracts the trace context of a message's headers into the
	// handler's context. Nil means propagation.TraceContext: traceparent and
	// tracestate.
	Propagator propagation.TextMapPropagator
	// TracerProvider makes the spans, one for each transaction: see
	// docs/inbox.md. Nil means otel.GetTracerProvider(), which makes none
	// unless the application has set one.
	TracerProvider trace.TracerProvider
	// Observer, unless nil, is told what becomes of messages: package metrics
	// has one for Prometheus.
	Observer Observer
}

// OrderCheck is what to do with a message whose sequence is lower than that of
// a message of the same topic and key which this consumer processed before.
// Messages without a key or a sequence are not checked. It costs a second row
// written per message, see docs/inbox.md, and takes transactions of one key
// one at a time.
type OrderCheck uint8

const (
	// OrderOff does not check.
	OrderOff OrderCheck = iota
	// OrderReport runs the handler all the same; the result is Late instead of
	// Processed.
	OrderReport
	// OrderRefuse does not run the handler. The message is recorded as seen,
	// so that it does not come again, and the result is Stale.
	OrderRefuse
)

// Result is what became of a message.
type Result uint8

const (
	// Unprocessed is the result beside an error: the message is unseen.
	Unprocessed Result = iota
	// Processed means that the handler ran and its transaction committed.
	Processed
	// Duplicate means that the message had been processed before; the handler
	// did not run.
	Duplicate
	// Late is Processed, though after a later message of its topic and key
	// (OrderReport).
	Late
	// Stale means that the handler did not run because a later message of the
	// topic and key had been processed (OrderRefuse). The message is now seen.
	Stale
)

var resultNames = [...]string{"unprocessed", "processed", "duplicate", "late", "stale"}

// String returns the result as a word in lower case, fit for a metric's label.
func (r Result) String() string {
	if int(r) < len(resultNames) {
		return resultNames[r]
	}
	return fmt.Sprintf("Result(%d)", uint8(r))
}

// Ran reports whether the handler ran.
func (r Result) Ran() bool { return r == Processed || r == Late }

// Beginner begins transactions. *pgxpool.Pool, *pgxpool.Conn and *pgx.Conn
// begin one of their own, together with the claim in one round trip. A pgx.Tx
// begins a savepoint, and with it the handler's effect is part of the caller's
// transaction.
type Beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Handler applies a message's effect through tx. It must neither commit nor
// roll tx back, nor use it after it returned. When it returns an error,
// nothing that it did through tx remains. The context has the span of the
// message's processing, which continues the message's trace. A handler answers
// a message by outbox.Insert with this context and tx: the answer is published
// if, and only if, the effect is committed, and names the message as its cause.
//
// It may run more than once for a message whose transaction failed, so what it
// does besides tx may be done more than once.
type Handler func(ctx context.Context, tx pgx.Tx, message Message) error

// SQLHandler is Handler for database/sql.
type SQLHandler func(ctx context.Context, tx *sql.Tx, message Message) error

// BatchHandler is Handler for those messages of a batch that are to be
// processed, in their order. Its context has the span of the batch, which links
// to the messages' traces; Inbox.Extract gets a message's own, for what answers
// that message.
type BatchHandler func(ctx context.Context, tx pgx.Tx, fresh []Message) error

// SQLBatchHandler is BatchHandler for database/sql.
type SQLBatchHandler func(ctx context.Context, tx *sql.Tx, fresh []Message) error

// ErrNoID is what errors.Is finds when a message has no identity. It will not
// have one the next time either: such a message belongs to the dead letters.
var ErrNoID = errors.New("the message has no id")

// Identify returns the id that the message is deduped by: what IDOf makes of
// it, or Message.ID. Its error, where there is none, is an ErrNoID.
func (i *Inbox) Identify(message Message) (ID, error) {
	if i.IDOf != nil {
		id, err := i.IDOf(message)
		if err != nil {
			return ID{}, fmt.Errorf("inbox: %w: Inbox.IDOf: %w", ErrNoID, err)
		}
		if id.IsZero() {
			return ID{}, fmt.Errorf("inbox: %w: Inbox.IDOf returned a zero ID", ErrNoID)
		}
		return id, nil
	}
	if !message.ID.IsZero() {
		return message.ID, nil
	}
	if message.badID != nil {
		return ID{}, fmt.Errorf("inbox: %w: %w: name the header as Decoder.IDHeader, or set Inbox.IDOf", ErrNoID, message.badID)
	}
	return ID{}, fmt.Errorf("inbox: %w: neither header message-id, ce_id or id nor property message_id is there: name the producer's header as Decoder.IDHeader, or set Inbox.IDOf", ErrNoID)
}

// Extract returns ctx as Process gives it to the message's handler, but for the
// span: with the trace context of the message's headers, and with what
// outbox.Insert makes the headers correlation-id and causation-id of. A
// BatchHandler that writes to an outbox takes it for each message that it
// answers.
func (i *Inbox) Extract(ctx context.Context, message Message) context.Context {
	return withCause(i.extractTrace(ctx, message), message)
}

func (i *Inbox) extractTrace(ctx context.Context, message Message) context.Context {
	if len(message.Headers) == 0 {
		return ctx
	}
	if i.Propagator != nil {
		return i.Propagator.Extract(ctx, propagation.MapCarrier(message.Headers))
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier(message.Headers))
}

// check reports settings that cannot work.
func (i *Inbox) check() error {
	switch {
	case i.Consumer == "":
		return errors.New("inbox: Inbox.Consumer is empty: name the consumer")
	case len(i.Consumer) > maxIndexed:
		return fmt.Errorf("inbox: Inbox.Consumer: %d bytes are too long; at most %d", len(i.Consumer), maxIndexed)
	case strings.IndexByte(i.Consumer, 0) >= 0 || !utf8.ValidString(i.Consumer):
		return fmt.Errorf("inbox: Inbox.Consumer: %s is not text that PostgreSQL can hold", quote(i.Consumer))
	case i.Order > OrderRefuse:
		return fmt.Errorf("inbox: Inbox.Order: %d is none of OrderOff, OrderReport and OrderRefuse", i.Order)
	case i.Retention < 0:
		return fmt.Errorf("inbox: Inbox.Retention: %s is negative", i.Retention)
	}
	return nil
}

func (i *Inbox) retries() int {
	return max(0, cmp.Or(i.Retries, defaultRetries))
}

// RetentionOrDefault is Retention, or DefaultRetention where it is 0.
func (i *Inbox) RetentionOrDefault() time.Duration {
	return cmp.Or(i.Retention, DefaultRetention)
}

func (i *Inbox) schema() string { return cmp.Or(i.Schema, "public") }
func (i *Inbox) table() string  { return cmp.Or(i.Table, "inbox") }

// identifier is the name of the table, or of one that belongs to it, quoted
// for SQL.
func (i *Inbox) identifier(suffix string) string {
	return pgx.Identifier{i.schema(), i.table() + suffix}.Sanitize()
}
