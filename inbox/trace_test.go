package inbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/inbox"
)

// traceparent is what a message carries.
const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func traced(m inbox.Message) inbox.Message {
	m.Headers = map[string]string{"traceparent": traceparent}
	return m
}

// newTracedInbox records its spans.
func newTracedInbox() (*inbox.Inbox, *tracetest.SpanRecorder, *sdktrace.TracerProvider) {
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	return &inbox.Inbox{Consumer: "shipping", TracerProvider: provider, Retries: 2}, recorder, provider
}

// attributes are a span's as text, each of which has to be there.
func attributes(span sdktrace.ReadOnlySpan) string {
	var b strings.Builder
	for _, a := range span.Attributes() {
		fmt.Fprintf(&b, "%s=%s\n", a.Key, a.Value.String())
	}
	return b.String()
}

func expectAttributes(t *testing.T, span sdktrace.ReadOnlySpan, want ...string) {
	t.Helper()
	got := attributes(span)
	for _, line := range want {
		if !strings.Contains("\n"+got, "\n"+line+"\n") {
			t.Errorf("the span has no attribute %s, but\n%s", line, got)
		}
	}
}

// TestSpanContinuesTheTrace processes a message, once with a span around.
func TestSpanContinuesTheTrace(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	box, recorder, provider := newTracedInbox()
	ctx, around := provider.Tracer("test").Start(t.Context(), "around")
	m := traced(newMessage())
	var inside trace.SpanContext
	result, err := box.Process(ctx, db.Pool, m, func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		inside = trace.SpanContextFromContext(ctx)
		return apply(ctx, tx, m)
	})
	expectResult(t, "the message", result, inbox.Processed, err)
	if result, err = box.ProcessSQL(t.Context(), openSQL(t, db.URL), m, func(context.Context, *sql.Tx, inbox.Message) error { return nil }); result != inbox.Duplicate {
		t.Errorf("the duplicate: %v, %v", result, err)
	}
	ended := recorder.Ended()
	if len(ended) != 2 {
		t.Fatalf("%d spans, want 2", len(ended))
	}
	first, second := ended[0], ended[1]
	if first.Name() != "process orders" || first.SpanKind() != trace.SpanKindConsumer || first.Status().Code != codes.Unset {
		t.Errorf("the span is %s of kind %s with status %v", first.Name(), first.SpanKind(), first.Status())
	}
	if first.Parent().SpanID().String() != "b7ad6b7169203331" || first.SpanContext().TraceID().String() != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("the span's parent is %s", first.Parent().SpanID())
	}
	if !inside.Equal(first.SpanContext()) {
		t.Error("the handler's context does not carry the span")
	}
	if links := first.Links(); len(links) != 2 || links[0].SpanContext.SpanID().String() != "b7ad6b7169203331" || !links[1].SpanContext.Equal(around.SpanContext()) {
		t.Errorf("the span links to %v, want the message's context and the caller's", links)
	}
	if len(second.Links()) != 1 {
		t.Errorf("without a span around the span links to %v", second.Links())
	}
	expectAttributes(t, first, "messaging.operation.name=process", "messaging.operation.type=process", "messaging.system=kafka",
		"messaging.destination.name=orders", "messaging.destination.partition.id=3", "messaging.kafka.offset=42",
		"messaging.message.id="+m.ID.String(), "inbox.consumer=shipping", "inbox.result=processed")
	expectAttributes(t, second, "inbox.result=duplicate")
	if strings.Contains(attributes(first), string(m.Key)+"\n") {
		t.Errorf("the key is an attribute:\n%s", attributes(first))
	}
}

// TestSpanOfAQueue names what RabbitMQ's conventions want.
func TestSpanOfAQueue(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	box, recorder, _ := newTracedInbox()
	for _, test := range []struct{ exchange, topic, queue, want string }{
		{"events", "orders.placed", "shipping", "events:orders.placed:shipping"},
		{"", "shipping", "shipping", "shipping"},
		{"events", "shipping", "shipping", "events:shipping"},
		{"", "orders.placed", "shipping", "orders.placed:shipping"},
	} {
		m := inbox.Message{ID: newID(), Topic: test.topic, Source: inbox.QueueSource(test.queue)}
		m.Source.Exchange = test.exchange
		if _, err := box.Process(t.Context(), db.Pool, m, apply); err != nil {
			t.Fatal(err)
		}
		ended := recorder.Ended()
		span := ended[len(ended)-1]
		if span.Name() != "process shipping" || span.Parent().IsValid() {
			t.Errorf("the span is %s with parent %v", span.Name(), span.Parent())
		}
		expectAttributes(t, span, "messaging.system=rabbitmq", "messaging.destination.name="+test.want,
			"messaging.rabbitmq.destination.routing_key="+test.topic)
	}
}

// TestSpanOfAFailure records the error, the retries and a panic.
func TestSpanOfAFailure(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	box, recorder, _ := newTracedInbox()
	wanted := errors.New("no such customer")
	for _, test := range []struct {
		handler inbox.Handler
		want    []string
	}{
		{func(context.Context, pgx.Tx, inbox.Message) error { return wanted }, []string{"error.type=handler"}},
		{func(context.Context, pgx.Tx, inbox.Message) error { panic("at the disco") }, []string{"error.type=panic"}},
		{func(ctx context.Context, tx pgx.Tx, _ inbox.Message) error { return conflict(ctx, tx, "40001") },
			[]string{"error.type=contention", "inbox.retries=2"}},
	} {
		func() {
			defer func() { _ = recover() }()
			_, _ = box.Process(t.Context(), db.Pool, newMessage(), test.handler)
		}()
		ended := recorder.Ended()
		span := ended[len(ended)-1]
		if span.Status().Code != codes.Error {
			t.Errorf("%v: the status is %v", test.want, span.Status())
		}
		expectAttributes(t, span, test.want...)
	}
	events := recorder.Ended()[0].Events()
	if len(events) != 1 || events[0].Name != "exception" || !hasValue(events[0].Attributes, wanted.Error()) {
		t.Errorf("the error is not recorded: %v", events)
	}
}

func hasValue(attributes []attribute.KeyValue, value string) bool {
	for _, a := range attributes {
		if a.Value.String() == value {
			return true
		}
	}
	return false
}

// TestSpanOfABatch links to the messages.
func TestSpanOfABatch(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	box, recorder, provider := newTracedInbox()
	ctx, around := provider.Tracer("test").Start(t.Context(), "around")
	again := traced(newMessage())
	batch := []inbox.Message{again, newMessage(), traced(newMessage()), again}
	var inside trace.SpanContext
	_, err := box.ProcessBatch(ctx, db.Pool, batch, func(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
		inside = trace.SpanContextFromContext(ctx)
		return applyAll(ctx, tx, fresh)
	})
	if err != nil {
		t.Fatal(err)
	}
	span := recorder.Ended()[0]
	if span.Name() != "process orders" || span.SpanKind() != trace.SpanKindConsumer || !span.Parent().Equal(around.SpanContext()) || !inside.Equal(span.SpanContext()) {
		t.Errorf("the span is %s of kind %s, its parent %v", span.Name(), span.SpanKind(), span.Parent())
	}
	if links := span.Links(); len(links) != 3 || links[0].SpanContext.SpanID().String() != "b7ad6b7169203331" {
		t.Errorf("the span links to %v, want the three messages that have a trace", links)
	}
	expectAttributes(t, span, "messaging.batch.message_count=4", "inbox.batch.fresh_count=3", "messaging.destination.name=orders")
}

// TestNobodyTraces lets the message's trace reach the handler without spans.
func TestNobodyTraces(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	var inside trace.SpanContext
	_, err := (&inbox.Inbox{Consumer: "shipping"}).Process(t.Context(), db.Pool, traced(newMessage()), func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		inside = trace.SpanContextFromContext(ctx)
		return apply(ctx, tx, m)
	})
	if err != nil || inside.SpanID().String() != "b7ad6b7169203331" {
		t.Errorf("the handler's context has span %s, %v", inside.SpanID(), err)
	}
}
