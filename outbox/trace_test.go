package outbox_test

import (
	"context"
	"maps"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/outbox"
)

const parent = "00-0102030405060708090a0b0c0d0e0f10-1112131415161718-01"

func traced(t *testing.T, state string) context.Context {
	t.Helper()
	parsed, err := trace.ParseTraceState(state)
	if err != nil {
		t.Fatal(err)
	}
	return trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID:    trace.TraceID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
		SpanID:     trace.SpanID{17, 18, 19, 20, 21, 22, 23, 24},
		TraceFlags: trace.FlagsSampled,
		TraceState: parsed,
	}))
}

func TestTraceContext(t *testing.T) {
	t.Parallel()
	member, err := baggage.NewMember("tenant", "7")
	if err != nil {
		t.Fatal(err)
	}
	bag, err := baggage.New(member)
	if err != nil {
		t.Fatal(err)
	}
	both := propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
	conn := connect(t, database(t, defaultTarget))
	for _, test := range []struct {
		name   string
		ctx    context.Context
		writer outbox.Writer
		own    map[string]string
		want   map[string]string
	}{
		{"no trace", t.Context(), outbox.Writer{}, nil, map[string]string{}},
		{"parent", traced(t, ""), outbox.Writer{}, nil, map[string]string{"traceparent": parent}},
		{"parent and state", traced(t, "a=1,b=2"), outbox.Writer{}, map[string]string{"x": "y"},
			map[string]string{"traceparent": parent, "tracestate": "a=1,b=2", "x": "y"}},
		{"its own", traced(t, "a=1"), outbox.Writer{}, map[string]string{"traceparent": "mine"}, map[string]string{"traceparent": "mine"}},
		{"no baggage unless asked", baggage.ContextWithBaggage(traced(t, ""), bag), outbox.Writer{}, nil, map[string]string{"traceparent": parent}},
		{"baggage", baggage.ContextWithBaggage(traced(t, ""), bag), outbox.Writer{Propagator: both}, nil,
			map[string]string{"traceparent": parent, "baggage": "tenant=7"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			execute(t, conn, "TRUNCATE outbox")
			before := maps.Clone(test.own)
			err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
				_, err := test.writer.Insert(test.ctx, tx, outbox.Message{Topic: "t", Headers: test.own})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := rows(t, conn, "outbox")[0].Headers; !maps.Equal(got, test.want) {
				t.Errorf("headers %v, want %v", got, test.want)
			}
			if !maps.Equal(test.own, before) {
				t.Errorf("the caller's map became %v", test.own)
			}
		})
	}
}
