package tracing

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/sinks"
)

const defaultLinks = sdktrace.DefaultLinkCountLimit

// record returns a tracer with two sinks, and what it records.
func record(maxLinks int, options ...sdktrace.TracerProviderOption) (*Tracer, *tracetest.SpanRecorder) {
	recorder := tracetest.NewSpanRecorder()
	limits := sdktrace.NewSpanLimits()
	limits.LinkCountLimit = maxLinks
	provider := sdktrace.NewTracerProvider(append(options, sdktrace.WithSpanProcessor(recorder), sdktrace.WithRawSpanLimits(limits))...)
	return New(Options{
		Tracer: provider.Tracer("test"), MaxLinks: maxLinks, Table: "public.outbox",
		Database: []attribute.KeyValue{semconv.ServerAddress("db")},
		Sinks: map[string]Sink{
			"main": {Attributes: []attribute.KeyValue{semconv.ServerAddress("kafka")}},
			"mail": {RabbitMQ: true, Exchange: "events"},
		},
	}), recorder
}

// messages makes n messages of their own traces, of which sampled says whether
// they are.
func messages(n int, sampled func(i int) bool) []sinks.Message {
	all := make([]sinks.Message, n)
	for i := range all {
		flags := "00"
		if sampled(i) {
			flags = "01"
		}
		all[i] = *with(headerParent, fmt.Sprintf("00-%032x-%016x-%s", i+1, i+1, flags))
		all[i].ID[15], all[i].ID[14] = byte(i), byte(i>>8)
		all[i].Destination = "orders"
	}
	return all
}

func always(int) bool { return true }

// attributes are a span's, as text.
func attributes(all []attribute.KeyValue) map[string]string {
	m := map[string]string{}
	for _, a := range all {
		m[string(a.Key)] = a.Value.String()
	}
	return m
}

func find(t *testing.T, recorder *tracetest.SpanRecorder, name string) sdktrace.ReadOnlySpan {
	t.Helper()
	var names []string
	for _, s := range recorder.Ended() {
		if s.Name() == name {
			return s
		}
		names = append(names, s.Name())
	}
	t.Fatalf("no span %q has ended, only %q", name, names)
	return nil
}

// has fails the test unless the span's attributes include all of want; an empty
// value is one that must not be there.
func has(t *testing.T, s sdktrace.ReadOnlySpan, want map[string]string) {
	t.Helper()
	got := attributes(s.Attributes())
	for name, value := range want {
		if got[name] != value {
			t.Errorf("span %q: %s is %q, want %q; it has %v", s.Name(), name, got[name], value, got)
		}
	}
}

func TestBatch(t *testing.T) {
	tracer, recorder := record(defaultLinks)
	began := time.Now().Add(-time.Second)
	batch := tracer.Batch(began, 3, true)
	all := messages(3, always)
	all[2].Headers = all[1].Headers // one transaction of the application's
	sending := batch.Send("main", all, nil)
	sending.End(nil)
	batch.Settle().End(3, nil)
	batch.End()

	root := find(t, recorder, "relay public.outbox")
	if root.Parent().IsValid() || !root.StartTime().Equal(began) || root.SpanKind() != trace.SpanKindInternal {
		t.Errorf("the batch's span is %+v", root)
	}
	has(t, root, map[string]string{"messaging.batch.message_count": "3", "outbox_relay.held": "true"})
	for name, want := range map[string]map[string]string{
		"claim public.outbox":  {"db.system.name": "postgresql", "db.operation.name": "claim", "db.collection.name": "public.outbox", "db.response.returned_rows": "3", "server.address": "db"},
		"settle public.outbox": {"db.operation.name": "settle", "outbox_relay.published_messages": "3", "error.type": ""},
		"send orders": {
			"messaging.system": "kafka", "messaging.operation.type": "send", "messaging.operation.name": "send",
			"messaging.destination.name": "orders", "messaging.destination.template": "", "messaging.batch.message_count": "3",
			"outbox_relay.trace_contexts": "2", "outbox_relay.failed_messages": "", "error.type": "", "server.address": "kafka",
		},
	} {
		s := find(t, recorder, name)
		has(t, s, want)
		if s.Parent().SpanID() != root.SpanContext().SpanID() || s.SpanKind() != trace.SpanKindClient || s.Status().Code != codes.Unset {
			t.Errorf("%s: parent %v, kind %v, status %v", name, s.Parent().SpanID(), s.SpanKind(), s.Status())
		}
	}
	if claim := find(t, recorder, "claim public.outbox"); !claim.StartTime().Equal(began) {
		t.Errorf("the claim began at %v, want %v", claim.StartTime(), began)
	}
	links := find(t, recorder, "send orders").Links()
	if len(links) != 2 {
		t.Fatalf("%d links, want 2: %v", len(links), links)
	}
	if l := links[0]; l.SpanContext.TraceID() != Stored(&all[0]).TraceID() || l.SpanContext.SpanID() != Stored(&all[0]).SpanID() ||
		!l.SpanContext.IsSampled() || !l.SpanContext.IsRemote() ||
		attributes(l.Attributes)["messaging.message.id"] != "00000000-0000-0000-0000-000000000000" {
		t.Errorf("the first link is %+v", l)
	}
	if l := links[1]; attributes(l.Attributes)["messaging.batch.message_count"] != "2" {
		t.Errorf("the second link is of two messages, and is %+v", l)
	}
}

// TestLinksOfLargeBatches: of 1000 contexts those are linked to that lead
// somewhere, and the attribute tells how many there were.
func TestLinksOfLargeBatches(t *testing.T) {
	for name, test := range map[string]struct {
		limit, n                 int
		sampled                  func(i int) bool
		links, sampledLinks, all int
	}{
		"more than fit":      {128, 1000, always, 128, 128, 1000},
		"few are sampled":    {128, 1000, func(i int) bool { return i >= 990 }, 128, 10, 1000},
		"none is sampled":    {128, 1000, func(int) bool { return false }, 128, 0, 1000},
		"all fit":            {128, 100, func(i int) bool { return i%2 == 0 }, 100, 50, 100},
		"another limit":      {3, 1000, always, 3, 3, 1000},
		"no limit":           {-1, 1000, always, 1000, 1000, 1000},
		"links are not kept": {0, 10, always, 0, 0, 10},
	} {
		t.Run(name, func(t *testing.T) {
			tracer, recorder := record(test.limit)
			batch := tracer.Batch(time.Now(), test.n, false)
			batch.Send("main", messages(test.n, test.sampled), nil).End(nil)
			s := find(t, recorder, "send orders")
			sampled := 0
			for i, l := range s.Links() {
				if l.SpanContext.IsSampled() {
					sampled++
					if sampled != i+1 {
						t.Fatalf("link %d is of a sampled trace, behind one that is not", i)
					}
				}
			}
			if len(s.Links()) != test.links || sampled != test.sampledLinks || s.DroppedLinks() != 0 {
				t.Errorf("%d links, %d sampled, %d dropped by the SDK; want %d, %d, 0", len(s.Links()), sampled, s.DroppedLinks(), test.links, test.sampledLinks)
			}
			has(t, s, map[string]string{"outbox_relay.trace_contexts": fmt.Sprint(test.all), "messaging.batch.message_count": fmt.Sprint(test.n)})
		})
	}
}

func TestDestinations(t *testing.T) {
	tracer, recorder := record(defaultLinks)
	batch := tracer.Batch(time.Now(), 3, false)
	all := messages(6, always)
	all[1].Destination, all[3].Destination = "invoices", "invoices"
	all[4].Destination, all[5].Destination = "orders.a", "orders.b" // made of keys
	sending := batch.Send("main", all, func(i int) string {
		if i >= 4 {
			return "orders.{key}"
		}
		return ""
	})
	refused := &sinks.Error{Scope: sinks.ScopeMessage, Reason: "message_too_large", Err: errors.New("too large")}
	sending.End([]error{nil, sinks.ErrSkipped, nil, refused, nil, errors.New("unknown")})

	orders := find(t, recorder, "send orders")
	has(t, orders, map[string]string{"messaging.batch.message_count": "2", "error.type": "", "outbox_relay.trace_contexts": "2"})
	invoices := find(t, recorder, "send invoices")
	has(t, invoices, map[string]string{"messaging.batch.message_count": "2", "error.type": "message_too_large", "outbox_relay.failed_messages": "2"})
	if invoices.Status().Code != codes.Error || invoices.Status().Description != "too large" {
		t.Errorf("the status is %+v", invoices.Status())
	}
	if l := invoices.Links(); len(l) != 2 || l[0].SpanContext.TraceID() != Stored(&all[1]).TraceID() {
		t.Errorf("the links of the other destination are %+v", l)
	}
	byKey := find(t, recorder, "send orders.{key}")
	has(t, byKey, map[string]string{
		"messaging.batch.message_count": "2", "messaging.destination.template": "orders.{key}", "messaging.destination.name": "",
		"error.type": "_OTHER", "outbox_relay.failed_messages": "1",
	})
}

func TestManyDestinations(t *testing.T) {
	tracer, recorder := record(defaultLinks)
	batch := tracer.Batch(time.Now(), 100, false)
	all := messages(100, always)
	for i := range all {
		all[i].Destination = fmt.Sprintf("topic-%d", i%50)
	}
	results := make([]error, 100)
	results[99] = errors.New("refused")
	batch.Send("main", all, nil).End(results)
	if n := len(recorder.Ended()); n != 1+maxDestinations+1 { // the claim, and that of all others
		t.Errorf("%d spans", n)
	}
	others := find(t, recorder, "send")
	has(t, others, map[string]string{"messaging.batch.message_count": fmt.Sprint(100 - 2*maxDestinations), "messaging.destination.name": "", "outbox_relay.failed_messages": "1"})
	has(t, find(t, recorder, "send topic-0"), map[string]string{"messaging.batch.message_count": "2", "messaging.destination.name": "topic-0"})
}

func TestRabbitMQ(t *testing.T) {
	for want, m := range map[string]sinks.Message{
		"events:mail.sent":        {Destination: "mail.sent"},
		"notifications:mail.sent": {Destination: "mail.sent", Exchange: "notifications"},
		"events":                  {},
	} {
		tracer, recorder := record(defaultLinks)
		tracer.Batch(time.Now(), 1, false).Send("mail", []sinks.Message{m}, nil).End(nil)
		has(t, find(t, recorder, "publish "+want), map[string]string{
			"messaging.system": "rabbitmq", "messaging.operation.name": "publish", "messaging.operation.type": "send",
			"messaging.destination.name": want, "messaging.rabbitmq.destination.routing_key": m.Destination,
		})
	}
	for want, sink := range map[string]Sink{"amq.default": {RabbitMQ: true}, "events": {RabbitMQ: true, Exchange: "events"}} {
		if got := sink.destination("", ""); got != want {
			t.Errorf("no exchange and no key: %q, want %q", got, want)
		}
	}
	if got := (Sink{RabbitMQ: true}).destination("", "queue"); got != "queue" {
		t.Errorf("the default exchange: %q", got)
	}
}

type stateError struct{ error }

func (stateError) SQLState() string { return "40001" }

func TestSettleFails(t *testing.T) {
	for want, err := range map[string]error{
		"40001":   fmt.Errorf("settle: %w", stateError{errors.New("serialization failure")}),
		"timeout": fmt.Errorf("settle: %w", context.DeadlineExceeded),
		"_OTHER":  errors.New("connection lost"),
	} {
		tracer, recorder := record(defaultLinks)
		tracer.Batch(time.Now(), 1, false).Settle().End(0, err)
		s := find(t, recorder, "settle public.outbox")
		has(t, s, map[string]string{"error.type": want, "outbox_relay.published_messages": "0"})
		if s.Status().Code != codes.Error {
			t.Errorf("%s: the status is %+v", want, s.Status())
		}
	}
}

// TestNothingIsAdded: what is sent has no context of the relay's, however it is
// traced.
func TestNothingIsAdded(t *testing.T) {
	tracer, _ := record(defaultLinks)
	all := messages(3, always)
	all = append(all, sinks.Message{Destination: "orders"})
	before := slices.Clone(all)
	for i := range before {
		before[i].Headers = slices.Clone(all[i].Headers)
	}
	tracer.Batch(time.Now(), 4, false).Send("main", all, nil).End(nil)
	if fmt.Sprint(all) != fmt.Sprint(before) {
		t.Errorf("tracing changed the messages to %v", all)
	}
}

// TestOff: what is not traced costs no allocation, for a batch or for a row.
func TestOff(t *testing.T) {
	off := New(Options{Table: "public.outbox"})
	if off != nil {
		t.Fatal("without a tracer batches are traced")
	}
	unsampled, recorder := record(defaultLinks, sdktrace.WithSampler(sdktrace.NeverSample()))
	all, began := messages(1000, always), time.Now()
	whole := func(tracer *Tracer) func() {
		return func() {
			batch := tracer.Batch(began, 1000, false)
			batch.Send("main", all, nil).End(nil)
			batch.Settle().End(1000, nil)
			batch.End()
		}
	}
	if n := testing.AllocsPerRun(100, whole(off)); n != 0 {
		t.Errorf("without tracing a batch of 1000 allocates %v times", n)
	}
	if n := testing.AllocsPerRun(100, whole(unsampled)); n > 20 {
		t.Errorf("a batch of 1000 that is not sampled allocates %v times", n)
	}
	if spans := recorder.Ended(); len(spans) != 0 {
		t.Errorf("%d spans were recorded that are not sampled", len(spans))
	}
	// On: bounded by the number of links, whatever the number of rows.
	on, _ := record(defaultLinks)
	if n := testing.AllocsPerRun(10, whole(on)); n > 8*defaultLinks {
		t.Errorf("a batch of 1000 with %d links allocates %v times", defaultLinks, n)
	}
}

func BenchmarkBatch(b *testing.B) {
	provider := sdktrace.NewTracerProvider()
	all, began := messages(1000, always), time.Now()
	for _, c := range []struct {
		name   string
		tracer trace.Tracer
		n      int
	}{{"off", nil, 1000}, {"on", provider.Tracer("test"), 1000}, {"on", provider.Tracer("test"), 10}} {
		b.Run(fmt.Sprintf("%s/%d", c.name, c.n), func(b *testing.B) {
			tracer := New(Options{Tracer: c.tracer, MaxLinks: defaultLinks, Table: strings.Repeat("t", 10)})
			b.ReportAllocs()
			for b.Loop() {
				batch := tracer.Batch(began, c.n, false)
				batch.Send("main", all[:c.n], nil).End(nil)
				batch.Settle().End(c.n, nil)
				batch.End()
			}
		})
	}
}
