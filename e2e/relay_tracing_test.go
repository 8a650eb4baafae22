package e2e_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/e2e/proxy"
	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/inbox"
	inboxkafka "github.com/outboxrelay/relay/inbox/kafka"
	"github.com/outboxrelay/relay/outbox"
)

// newService is what a service has that exports its spans to the collector.
func newService(t *testing.T, collector *scenario.Collector, name string, sampler sdktrace.Sampler) *sdktrace.TracerProvider {
	t.Helper()
	exporter, err := otlptracehttp.New(t.Context(), otlptracehttp.WithEndpointURL(collector.HTTP+"/v1/traces"))
	if err != nil {
		t.Fatal(err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler), sdktrace.WithSyncer(exporter),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", name))))
	t.Cleanup(func() { _ = provider.Shutdown(context.WithoutCancel(t.Context())) })
	return provider
}

// place inserts messages in a transaction of an application's span, and returns
// the span's context, which has a state of somebody's.
func place(t *testing.T, stage *scenario.Stage, service trace.TracerProvider, messages ...outbox.Message) (trace.SpanContext, []outbox.Receipt) {
	t.Helper()
	state, err := trace.ParseTraceState("vendor=opaque-1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := service.Tracer("shop").Start(t.Context(), "POST /orders")
	defer span.End()
	with := span.SpanContext().WithTraceState(state)
	var receipts []outbox.Receipt
	err = pgx.BeginFunc(ctx, stage.Database.Pool, func(tx pgx.Tx) error {
		receipts, err = outbox.Insert(trace.ContextWithSpanContext(ctx, with), tx, messages...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return with, receipts
}

func named(service, name string) func(scenario.Span) bool {
	return func(s scenario.Span) bool { return s.Service == service && s.Name == name }
}

func wantAttributes(t *testing.T, s scenario.Span, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if s.Attributes[name] != value {
			t.Errorf("span %q: %s is %q, want %q; it has %v", s.Name, name, s.Attributes[name], value, s.Attributes)
		}
	}
}

// TestTraceFromServiceToService follows an order from the span of the service
// that placed it to that of the service that consumed it.
func TestTraceFromServiceToService(t *testing.T) {
	t.Parallel()
	collector := scenario.NewCollector(t)
	stage := scenario.NewKafkaStage(t, scenario.Settings{"sinks.main.kafka.max_message_bytes": 10_000, "outbox.workers": 1})
	topic, key := stage.Topic(), "order-1"
	shop := newService(t, collector, "shop", sdktrace.AlwaysSample())
	order := outbox.Message{Topic: topic, Key: key, Type: "OrderPlaced", Payload: []byte(`"` + servers.Canary + `"`), Headers: map[string]string{"tenant": servers.Canary}}
	placed, receipts := place(t, stage, shop, order, order)
	unsampled, _ := place(t, stage, newService(t, collector, "quiet", sdktrace.NeverSample()), order)

	relay := stage.Relay(nil)
	relay.Environment = append(collector.Environment("http/protobuf"), "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test", "OTEL_SERVICE_NAME=relay-of-orders")
	relay.Start()
	record := stage.AwaitRecord(receipts[0].MessageID, time.Minute)
	if want := fmt.Sprintf("00-%s-%s-01", placed.TraceID(), placed.SpanID()); record.Headers["traceparent"] != want || record.Headers["tracestate"] != "vendor=opaque-1" {
		t.Errorf("the consumer gets traceparent %q and tracestate %q, the application stored %q", record.Headers["traceparent"], record.Headers["tracestate"], want)
	}

	// The relay's own spans: all that waited was one batch.
	const service = "relay-of-orders"
	send := collector.Await("what was sent", named(service, "send "+topic))
	wantAttributes(t, send, map[string]string{
		"messaging.system": "kafka", "messaging.operation.name": "send", "messaging.operation.type": "send",
		"messaging.destination.name": topic, "messaging.batch.message_count": "3", "messaging.client.id": "outbox-relay",
		"server.address": "127.0.0.1", "outbox_relay.trace_contexts": "2", "error.type": "",
	})
	if send.Kind != "CLIENT" || send.Failed || send.Attributes["server.port"] == "" || send.Resource["deployment.environment.name"] != "test" || send.Resource["service.version"] == "" {
		t.Errorf("the span is %+v", send)
	}
	if len(send.Links) != 2 {
		t.Fatalf("%d links, want one for each span of an application: %+v", len(send.Links), send.Links)
	}
	for i, want := range []struct {
		context trace.SpanContext
		about   string
	}{{placed, "messaging.batch.message_count"}, {unsampled, "messaging.message.id"}} {
		l := send.Links[i]
		if l.TraceID != want.context.TraceID().String() || l.SpanID != want.context.SpanID().String() || l.Sampled != want.context.IsSampled() ||
			l.Attributes[want.about] == "" {
			t.Errorf("link %d is %+v, want one to %v", i, l, want.context)
		}
	}
	claim := collector.Await("the claim", named(service, "claim public.outbox"))
	settle := collector.Await("the settlement", named(service, "settle public.outbox"))
	root := collector.Await("the batch", named(service, "relay public.outbox"))
	wantAttributes(t, root, map[string]string{"messaging.batch.message_count": "3", "outbox_relay.held": "false"})
	wantAttributes(t, claim, map[string]string{"db.system.name": "postgresql", "db.collection.name": "public.outbox", "db.operation.name": "claim", "db.response.returned_rows": "3"})
	wantAttributes(t, settle, map[string]string{"db.operation.name": "settle", "outbox_relay.published_messages": "3"})
	for _, part := range []scenario.Span{claim, send, settle} {
		if part.TraceID != root.TraceID || part.Parent != root.SpanID || root.Parent != "" {
			t.Errorf("%q is not below %q: %+v", part.Name, root.Name, part)
		}
	}
	if claim.End.After(send.Start) || send.End.After(settle.Start) || settle.End.After(root.End) || !root.Start.Equal(claim.Start) {
		t.Errorf("the order of the spans is not that of their work: claim %v-%v, send %v-%v, settle %v-%v, all %v-%v",
			claim.Start, claim.End, send.Start, send.End, settle.Start, settle.End, root.Start, root.End)
	}
	if _, headers := collector.Requests("http/protobuf"); headers["authorization"] != "Bearer "+servers.Canary {
		t.Errorf("the collector got the headers %v", headers)
	}

	// The consumer goes on with the application's trace.
	consume(t, stage, newService(t, collector, "shipping", sdktrace.ParentBased(sdktrace.AlwaysSample())))
	process := collector.Await("the consumer", named("shipping", "process "+topic))
	if process.TraceID != placed.TraceID().String() || process.Parent != placed.SpanID().String() {
		t.Errorf("the consumer's span is %+v, want a child of %v", process, placed)
	}
	if s := collector.Await("the application", named("shop", "POST /orders")); s.SpanID != process.Parent {
		t.Errorf("the application's span %+v is not the parent of the consumer's", s)
	}

	// A message that the broker refuses is found by the trace in the log.
	order.Payload = []byte(`"` + strings.Repeat(servers.Canary, 1000) + `"`)
	refused, receipts := place(t, stage, shop, order)
	failed := collector.Await("what was refused", func(s scenario.Span) bool { return s.Service == service && s.Name == "send "+topic && s.Failed })
	wantAttributes(t, failed, map[string]string{"error.type": "message_too_large", "outbox_relay.failed_messages": "1"})
	if len(failed.Links) != 1 || failed.Links[0].TraceID != refused.TraceID().String() {
		t.Errorf("the refused message's span links to %+v, want %v", failed.Links, refused)
	}
	about := fmt.Sprintf("message_id=%s trace_id=%s", receipts[0].MessageID, refused.TraceID())
	scenario.Await(t, time.Minute, "the log of the refused message", func() (bool, string) {
		return strings.Contains(relay.Log(), about), "it is not there"
	})
	relay.Stop()
	for _, line := range []string{
		fmt.Sprintf(`level=DEBUG msg="message published" topic=%s sink=main id=1 message_id=%s trace_id=%s`, topic, record.MessageID, placed.TraceID()),
		`level=DEBUG msg="message parked" topic=` + topic, `level=WARN msg="a message is parked`,
	} {
		if !strings.Contains(relay.Log(), line) {
			t.Errorf("the log has no line with %s", line)
		}
	}
	// That none of it is in the log, the stage checks itself.
	for _, s := range collector.Spans(func(s scenario.Span) bool { return s.Service == service }) {
		if strings.Contains(fmt.Sprintf("%+v", s), servers.Canary) {
			t.Errorf("a payload, a header or a credential is in the span %+v", s)
		}
	}
}

// consume runs a consumer with an inbox until it has had all messages.
func consume(t *testing.T, stage *scenario.Stage, provider trace.TracerProvider) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), stage.Database.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	handled := make(chan struct{}, 100)
	consumer, err := inboxkafka.New(inboxkafka.Config{
		Brokers: servers.FromEnvironment().KafkaBrokers, Group: "shipping-" + stage.Topic(), Topics: []string{stage.Topic()}, DB: pool,
		Inbox: &inbox.Inbox{Consumer: "shipping", TracerProvider: provider},
		Handler: func(context.Context, pgx.Tx, inbox.Message) error {
			handled <- struct{}{}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- consumer.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the consumer: %v", err)
		}
	}()
	for range 3 {
		select {
		case <-handled:
		case <-time.After(time.Minute):
			t.Fatal("the consumer does not get its messages")
		}
	}
}

// TestTracesByGRPC: the other protocol and the other broker.
func TestTracesByGRPC(t *testing.T) {
	t.Parallel()
	collector := scenario.NewCollector(t)
	stage := scenario.NewRabbitStage(t, nil)
	relay := stage.Relay(nil)
	relay.Environment = collector.Environment("grpc")
	relay.Start()
	placed, receipts := place(t, stage, newService(t, collector, "shop", sdktrace.AlwaysSample()), outbox.Message{Topic: stage.Topic(), Type: "OrderPlaced", Payload: []byte(`1`)})
	record := stage.AwaitRecord(receipts[0].MessageID, time.Minute)
	if want := fmt.Sprintf("00-%s-%s-01", placed.TraceID(), placed.SpanID()); record.Headers["traceparent"] != want || record.Headers["tracestate"] != "vendor=opaque-1" {
		t.Errorf("the consumer gets %v, the application stored %q", record.Headers, want)
	}
	send := collector.Await("what was sent", named("outbox-relay", "publish "+stage.Topic()))
	wantAttributes(t, send, map[string]string{
		"messaging.system": "rabbitmq", "messaging.operation.name": "publish", "messaging.operation.type": "send",
		"messaging.destination.name": stage.Topic(), "messaging.rabbitmq.destination.routing_key": stage.Topic(), "server.address": "127.0.0.1",
	})
	if len(send.Links) != 1 || send.Links[0].SpanID != placed.SpanID().String() || send.Links[0].Attributes["messaging.message.id"] != record.MessageID.String() {
		t.Errorf("the links are %+v, want one to %v", send.Links, placed)
	}
	if n, headers := collector.Requests("grpc"); n == 0 || headers["authorization"] != "Bearer "+servers.Canary {
		t.Errorf("%d requests by gRPC, the last one with %v", n, headers)
	}
	// What is left when the relay stops is exported before its end.
	last := stage.Insert(stage.Topic(), nil, "last")
	stage.AwaitRecord(last.MessageID, time.Minute)
	stage.Drain(time.Minute)
	relay.Stop()
	if n := len(collector.Spans(named("outbox-relay", "settle public.outbox"))); n != 2 {
		t.Errorf("%d settlements were exported, want 2", n)
	}
}

// TestNoTracesUnlessAsked: without the variables nothing is exported, and a
// message's trace goes to its consumer all the same.
func TestNoTracesUnlessAsked(t *testing.T) {
	t.Parallel()
	collector := scenario.NewCollector(t)
	stage := scenario.NewKafkaStage(t, nil)
	relay := stage.Relay(nil)
	relay.Environment = append(collector.Environment("http/protobuf"), "OTEL_SDK_DISABLED=true")
	relay.Start()
	placed, receipts := place(t, stage, newService(t, collector, "shop", sdktrace.AlwaysSample()), outbox.Message{Topic: stage.Topic(), Payload: []byte(`1`)})
	if got := stage.AwaitRecord(receipts[0].MessageID, time.Minute).Headers["traceparent"]; !strings.Contains(got, placed.TraceID().String()) {
		t.Errorf("the consumer gets traceparent %q, want one of %v", got, placed.TraceID())
	}
	relay.Stop()
	if spans := collector.Spans(func(s scenario.Span) bool { return s.Service != "shop" }); len(spans) != 0 {
		t.Errorf("spans were exported: %+v", spans)
	}
}

// TestCollectorIsAway: relaying goes on, and neither a collector that is not
// there nor one that hangs holds up the stop.
func TestCollectorIsAway(t *testing.T) {
	t.Parallel()
	deaf, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = deaf.Close() }) // the kernel takes connections, nobody answers
	for _, test := range []struct {
		name, protocol, endpoint string
		hangs                    bool
	}{
		{"refused by HTTP", "http/protobuf", "http://127.0.0.1:1", false},
		{"refused by gRPC", "grpc", "http://127.0.0.1:1", false},
		{"hangs by HTTP", "http/protobuf", "http://" + deaf.Addr().String(), true},
		{"hangs by gRPC", "grpc", "http://" + deaf.Addr().String(), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			stage := scenario.NewKafkaStage(t, nil)
			relay := stage.Relay(nil)
			timeout := "1000"
			if test.hangs {
				timeout = "600000" // the stop has to have a bound of its own
			}
			relay.Environment = []string{
				"OTEL_EXPORTER_OTLP_ENDPOINT=" + test.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL=" + test.protocol,
				"OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20" + servers.Canary,
				"OTEL_EXPORTER_OTLP_TIMEOUT=" + timeout, "OTEL_BSP_EXPORT_TIMEOUT=" + timeout,
				"OTEL_BSP_SCHEDULE_DELAY=10", "OTEL_BSP_MAX_QUEUE_SIZE=8",
			}
			relay.Start()
			stage.Load(scenario.Workload{}, time.Second)
			stage.Drain(time.Minute)
			if !test.hangs {
				scenario.Await(t, time.Minute, "the log to say that traces are not exported", func() (bool, string) {
					return strings.Contains(relay.Log(), "traces cannot be exported"), "it does not"
				})
			}
			relay.Terminate()
			if code, ended := relay.ExitCode(time.Minute); !ended || code != 0 {
				t.Errorf("the relay ended: %t, with exit code %d", ended, code)
			}
			if n := strings.Count(relay.Log(), "traces cannot be exported"); n > 1 {
				t.Errorf("the log says %d times that traces are not exported, want once", n)
			}
			if !strings.Contains(relay.Log(), "spans were not exported before the stop") {
				t.Error("the log does not tell how many spans were lost")
			}
			stage.Verify(0)
		})
	}
}

// TestCollectorComesBack: a collector that was away gets what is made from then
// on.
func TestCollectorComesBack(t *testing.T) {
	t.Parallel()
	collector := scenario.NewCollector(t)
	between, err := proxy.New(strings.TrimPrefix(collector.HTTP, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = between.Close() })
	between.Refuse()
	stage := scenario.NewKafkaStage(t, nil)
	relay := stage.Relay(nil)
	relay.Environment = append(collector.Environment("http/protobuf"), "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://"+between.Address()+"/v1/traces")
	relay.Start()
	key := "k"
	stage.Insert(stage.Topic(), &key, "while it is away")
	scenario.Await(t, time.Minute, "the log to say that traces are not exported", func() (bool, string) {
		return strings.Contains(relay.Log(), "traces cannot be exported"), "it does not"
	})
	if err := between.Pass(); err != nil {
		t.Fatal(err)
	}
	stage.Insert(stage.Topic(), &key, "when it is back")
	collector.Await("what is sent when the collector is back", named("outbox-relay", "send "+stage.Topic()))
	scenario.Await(t, time.Minute, "the log to say so", func() (bool, string) {
		return strings.Contains(relay.Log(), "traces are exported again"), "it does not"
	})
	relay.Stop()
	stage.Verify(0)
}
