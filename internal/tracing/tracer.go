// Package tracing makes the spans of the relay's batches. A batch is a trace of
// its own: a span from the claim to the end, and below it one each for the
// claim, for what is sent to a destination, and for settling. Those that send
// link to the contexts that the messages' writers stored with them, which go to
// the consumers as they are: the relay adds nothing to a message.
//
// The spans follow the semantic conventions of OpenTelemetry for messaging and
// for databases. Exporting them is the business of package otlp.
package tracing

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/internal/sqlstate"
)

// The attributes that the conventions have no names for.
const (
	// attributeHeld: the batch is of messages that were refused before.
	attributeHeld = attribute.Key("outbox_relay.held")
	// attributeContexts counts the distinct contexts of a span's messages; it has
	// links to as many of them as the limit allows.
	attributeContexts = attribute.Key("outbox_relay.trace_contexts")
	// attributeFailed counts the messages that were not acknowledged.
	attributeFailed = attribute.Key("outbox_relay.failed_messages")
	// attributePublished counts the messages that are settled as published.
	attributePublished = attribute.Key("outbox_relay.published_messages")
)

// Options of a Tracer.
type Options struct {
	// Tracer makes the spans; nil: nobody does.
	Tracer trace.Tracer
	// MaxLinks is how many links of a span are kept; negative: all.
	MaxLinks int
	// Table is the outbox, as it is shown, and Database what else there is to say
	// of where it is.
	Table    string
	Database []attribute.KeyValue
	// Sinks are described by their names.
	Sinks map[string]Sink
}

// Tracer traces batches. All methods may be called concurrently, and on nil,
// which traces nothing and costs nothing.
type Tracer struct {
	options  Options
	database []attribute.KeyValue
	// origins are used again: most of a batch's cost would be theirs.
	origins sync.Pool
}

// New returns a Tracer, nil where nobody makes spans.
func New(o Options) *Tracer {
	if o.Tracer == nil {
		return nil
	}
	return &Tracer{
		options:  o,
		database: append([]attribute.KeyValue{semconv.DBSystemNamePostgreSQL, semconv.DBCollectionName(o.Table)}, o.Database...),
		origins:  sync.Pool{New: func() any { return new(origins) }},
	}
}

// Batch is the trace of one batch; nil for one that is not sampled. Its methods
// may be called on nil and, but for End, concurrently.
type Batch struct {
	tracer *Tracer
	ctx    context.Context // it holds the parent of the batch's spans and nothing else
	span   trace.Span
}

// Batch begins the trace of a batch that was claimed just now by a claim that
// began then.
func (t *Tracer) Batch(began time.Time, messages int, held bool) *Batch {
	if t == nil {
		return nil
	}
	ctx, span := t.options.Tracer.Start(context.Background(), "relay "+t.options.Table, trace.WithTimestamp(began),
		trace.WithAttributes(semconv.MessagingBatchMessageCount(messages), attributeHeld.Bool(held)))
	if !span.IsRecording() {
		return nil
	}
	b := &Batch{tracer: t, ctx: ctx, span: span}
	b.database("claim", trace.WithTimestamp(began), trace.WithAttributes(semconv.DBResponseReturnedRows(messages))).End()
	return b
}

// database begins a span of an operation on the outbox.
func (b *Batch) database(operation string, options ...trace.SpanStartOption) trace.Span {
	t := b.tracer
	options = append(options, trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(t.database...), trace.WithAttributes(semconv.DBOperationName(operation)))
	_, span := t.options.Tracer.Start(b.ctx, operation+" "+t.options.Table, options...)
	return span
}

// End ends the trace.
func (b *Batch) End() {
	if b != nil {
		b.span.End()
	}
}

// Settling is the span of a settlement; it may be nil.
type Settling struct{ span trace.Span }

// Settle begins the span of a settlement.
func (b *Batch) Settle() *Settling {
	if b == nil {
		return nil
	}
	return &Settling{span: b.database("settle")}
}

// End tells how many messages were to be marked as published, and whether the
// batch could be settled.
func (s *Settling) End(published int, err error) {
	if s == nil {
		return
	}
	s.span.SetAttributes(attributePublished.Int(published))
	if err != nil {
		s.span.SetAttributes(semconv.ErrorTypeKey.String(databaseError(err)))
		s.span.SetStatus(codes.Error, err.Error())
	}
	s.span.End()
}

// databaseError is the class of an error: PostgreSQL's own code where it has
// one.
func databaseError(err error) string {
	if state := sqlstate.Of(err); state != "" {
		return state
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "timeout"
	}
	return semconv.ErrorTypeOther.Value.AsString()
}
