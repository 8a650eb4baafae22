package scenario

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/outboxrelay/relay/e2e/servers"
)

// Collector receives spans over OTLP, by HTTP and by gRPC, as OpenTelemetry's
// own does. The protocol's messages are its generated code; nothing here is the
// exporter's.
type Collector struct {
	collectorpb.UnimplementedTraceServiceServer

	// HTTP and GRPC are the endpoints, as URLs.
	HTTP, GRPC string

	t  testing.TB
	mu sync.Mutex
	// spans are those received, headers those of the last request, requests how
	// many there were, by protocol.
	spans    []Span
	headers  map[string]string
	requests map[string]int
}

// Span is one that a Collector received.
type Span struct {
	Name, Kind              string
	TraceID, SpanID, Parent string
	// Service is the name of who exported it, Resource all there is of that.
	Service    string
	Resource   map[string]string
	Attributes map[string]string
	Links      []SpanLink
	// Failed: its status is an error, of which Status is the description.
	Failed     bool
	Status     string
	Start, End time.Time
}

// SpanLink is a link of a span.
type SpanLink struct {
	TraceID, SpanID string
	Sampled         bool
	Attributes      map[string]string
}

// NewCollector starts a collector that runs until the test ends.
func NewCollector(t testing.TB) *Collector {
	t.Helper()
	c := &Collector{t: t, requests: map[string]int{}}
	c.HTTP = "http://" + c.listen(func(l net.Listener) (serve func() error, stop func()) {
		server := &http.Server{Handler: c, ReadHeaderTimeout: time.Minute}
		return func() error { return server.Serve(l) }, func() { _ = server.Close() }
	})
	c.GRPC = "http://" + c.listen(func(l net.Listener) (serve func() error, stop func()) {
		server := grpc.NewServer()
		collectorpb.RegisterTraceServiceServer(server, c)
		return func() error { return server.Serve(l) }, server.Stop
	})
	return c
}

func (c *Collector) listen(server func(net.Listener) (serve func() error, stop func())) (address string) {
	c.t.Helper()
	l, err := (&net.ListenConfig{}).Listen(c.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	serve, stop := server(l)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = serve() // its error is that it was stopped
	}()
	c.t.Cleanup(func() { stop(); <-ended })
	return l.Addr().String()
}

// Environment are the variables that make a relay export here.
func (c *Collector) Environment(protocol string) []string {
	endpoint := c.HTTP
	if protocol == "grpc" {
		endpoint = c.GRPC
	}
	return []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + endpoint,
		"OTEL_EXPORTER_OTLP_PROTOCOL=" + protocol,
		"OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20" + servers.Canary,
		"OTEL_BSP_SCHEDULE_DELAY=100",
	}
}

// ServeHTTP takes spans by OTLP/HTTP.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	request := &collectorpb.ExportTraceServiceRequest{}
	switch {
	case r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf":
		http.Error(w, fmt.Sprintf("%s %s of %s", r.Method, r.URL.Path, r.Header.Get("Content-Type")), http.StatusBadRequest)
		return
	case proto.Unmarshal(body, request) != nil:
		http.Error(w, "not a request", http.StatusBadRequest)
		return
	}
	headers := map[string]string{}
	for name := range r.Header {
		headers[strings.ToLower(name)] = r.Header.Get(name)
	}
	c.take("http/protobuf", headers, request)
	w.Header().Set("Content-Type", "application/x-protobuf")
	response, _ := proto.Marshal(&collectorpb.ExportTraceServiceResponse{})
	_, _ = w.Write(response)
}

// Export takes spans by gRPC.
func (c *Collector) Export(ctx context.Context, request *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	headers := map[string]string{}
	if incoming, ok := metadata.FromIncomingContext(ctx); ok {
		for name, values := range incoming {
			headers[name] = strings.Join(values, ",")
		}
	}
	c.take("grpc", headers, request)
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func (c *Collector) take(protocol string, headers map[string]string, request *collectorpb.ExportTraceServiceRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests[protocol]++
	c.headers = headers
	for _, resource := range request.GetResourceSpans() {
		about := texts(resource.GetResource().GetAttributes())
		for _, scope := range resource.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				c.spans = append(c.spans, newSpan(about, span))
			}
		}
	}
}

func newSpan(resource map[string]string, s *tracepb.Span) Span {
	span := Span{
		Name: s.GetName(), Kind: strings.TrimPrefix(s.GetKind().String(), "SPAN_KIND_"),
		TraceID: hex.EncodeToString(s.GetTraceId()), SpanID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
		Service: resource["service.name"], Resource: resource, Attributes: texts(s.GetAttributes()),
		Failed: s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR, Status: s.GetStatus().GetMessage(),
		Start: nanoseconds(s.GetStartTimeUnixNano()), End: nanoseconds(s.GetEndTimeUnixNano()),
	}
	for _, l := range s.GetLinks() {
		span.Links = append(span.Links, SpanLink{
			TraceID: hex.EncodeToString(l.GetTraceId()), SpanID: hex.EncodeToString(l.GetSpanId()),
			Sampled: l.GetFlags()&1 != 0, Attributes: texts(l.GetAttributes()),
		})
	}
	return span
}

func nanoseconds(n uint64) time.Time { return time.Unix(0, int64(n)) } //nolint:gosec // until 2262

// texts are attributes, their values as text.
func texts(attributes []*commonpb.KeyValue) map[string]string {
	m := map[string]string{}
	for _, a := range attributes {
		switch v := a.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			m[a.GetKey()] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			m[a.GetKey()] = fmt.Sprint(v.IntValue)
		case *commonpb.AnyValue_BoolValue:
			m[a.GetKey()] = fmt.Sprint(v.BoolValue)
		default:
			m[a.GetKey()] = a.GetValue().String()
		}
	}
	return m
}

// Spans are those received so far for which want is true.
func (c *Collector) Spans(want func(Span) bool) (found []Span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if want(s) {
			found = append(found, s)
		}
	}
	return found
}

// Await waits for a span for which want is true.
func (c *Collector) Await(what string, want func(Span) bool) (found Span) {
	c.t.Helper()
	Await(c.t, time.Minute, "the span of "+what, func() (bool, string) {
		spans := c.Spans(want)
		if len(spans) > 0 {
			found = spans[0]
			return true, ""
		}
		var names []string
		for _, s := range c.Spans(func(Span) bool { return true }) {
			names = append(names, s.Service+": "+s.Name)
		}
		slices.Sort(names)
		return false, fmt.Sprintf("received: %s", slices.Compact(names))
	})
	return found
}

// Requests counts the requests of a protocol, and returns the headers of the
// last one of any.
func (c *Collector) Requests(protocol string) (n int, headers map[string]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requests[protocol], c.headers
}
