package otlp

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// journal is what was logged.
type journal struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	return j.text.Write(b)
}

func (j *journal) String() string {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	return j.text.String()
}

func (j *journal) count(words string) int { return strings.Count(j.String(), words) }

func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for: %s", what)
		}
	}
}

const secret = "s3cr3t-token"

// start starts a provider whose collector is at the address. Its queue holds 16
// spans, which are exported 8 at a time.
func start(t *testing.T, address string) (*Provider, *journal) {
	t.Helper()
	return startWith(t, address, "")
}

// startWith leaves one variable as the test has set it.
func startWith(t *testing.T, address, own string) (*Provider, *journal) {
	t.Helper()
	for name, value := range map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT":    "http://" + address,
		"OTEL_EXPORTER_OTLP_HEADERS":     "authorization=Bearer%20" + secret,
		"OTEL_BSP_SCHEDULE_DELAY":        "10",
		"OTEL_BSP_MAX_QUEUE_SIZE":        "16",
		"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8",
	} {
		if name != own {
			t.Setenv(name, value)
		}
	}
	j := &journal{}
	p := Start(t.Context(), "1.2.3", slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if p == nil {
		t.Fatalf("tracing is off:\n%s", j)
	}
	t.Cleanup(func() {
		p.Stop()
		if strings.Contains(j.String(), secret) {
			t.Errorf("the log shows a header's value:\n%s", j)
		}
	})
	return p, j
}

func (p *Provider) make(n int) {
	for range n {
		_, span := p.Tracer().Start(context.Background(), "span")
		span.End()
	}
}

// TestCollectorComesAndGoes: each change of state is logged once, and spans are
// dropped meanwhile, not kept.
func TestCollectorComesAndGoes(t *testing.T) {
	var refuse atomic.Bool
	var requests atomic.Int64
	refuse.Store(true)
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		requests.Add(1)
		if refuse.Load() {
			http.Error(w, "no such tenant: "+r.Header.Get("Authorization")+strings.Repeat(" x", 1000), http.StatusForbidden)
		}
	}))
	defer collector.Close()
	p, j := start(t, collector.Listener.Addr().String())

	for i := range 3 {
		p.make(5)
		await(t, "an attempt", func() bool { return requests.Load() > int64(i) && p.gauge.waiting.Load() == 0 })
	}
	if n := j.count("traces cannot be exported"); n != 1 {
		t.Errorf("said %d times that traces cannot be exported, want once:\n%s", n, j)
	}
	if !strings.Contains(j.String(), "no such tenant: ***") || len(j.String()) > 4000 {
		t.Errorf("the collector's words are not in the log, or too many of them:\n%s", j)
	}
	refuse.Store(false)
	p.make(1)
	await(t, "the news that it works again", func() bool { return j.count("traces are exported again") == 1 })
	if !strings.Contains(j.String(), "lost_spans=15") {
		t.Errorf("not 15 spans were counted as lost:\n%s", j)
	}
	p.Stop()
	if j.count("before the stop") != 0 {
		t.Errorf("spans were lost in the stop:\n%s", j)
	}
}

// TestCollectorHangs: the queue is bounded, spans are made as fast as ever, and
// the stop waits its time and no longer.
func TestCollectorHangs(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }() // it never accepts
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600000")
	t.Setenv("OTEL_BSP_EXPORT_TIMEOUT", "600000")
	p, j := start(t, listener.Addr().String())
	p.make(1000)
	if waiting, dropped := p.gauge.waiting.Load(), p.gauge.dropped.Load(); waiting != 16 || dropped != 1000-16 {
		t.Errorf("%d spans wait and %d were dropped, want 16 and 984", waiting, dropped)
	}
	stopped := make(chan struct{})
	go func() { p.Stop(); close(stopped) }()
	select {
	case <-stopped:
	case <-time.After(60 * time.Second):
		t.Fatal("the stop waits for a collector that hangs")
	}
	if !strings.Contains(j.String(), "spans were not exported before the stop") || !strings.Contains(j.String(), "lost_spans=1000") {
		t.Errorf("the log does not tell of 1000 lost spans:\n%s", j)
	}
	p.make(1) // after the stop nothing happens
	await(t, "the end of the export", func() bool { return p.gauge.waiting.Load() <= 1 })
	p.Stop()
	if n := j.count("before the stop"); n != 1 {
		t.Errorf("told %d times of the stop", n)
	}
}

// TestCollectorIsSlow: spans that find the queue full are told of once, and
// once that there are none any more.
func TestCollectorIsSlow(t *testing.T) {
	let := make(chan struct{})
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-let
	}))
	defer collector.Close()
	p, j := start(t, collector.Listener.Addr().String())
	defer p.Stop()
	defer close(let)
	for range 3 {
		p.make(1000)
		for p.gauge.waiting.Load() > 0 {
			select {
			case let <- struct{}{}:
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	if n := j.count("more spans are made than the collector takes"); n < 1 {
		t.Errorf("said %d times that spans are dropped:\n%s", n, j)
	}
	for j.count("traces are exported again") < j.count("more spans are made") {
		p.make(1)
		let <- struct{}{}
	}
	if strings.Contains(j.String(), "cannot be exported") {
		t.Errorf("a slow collector is not one that is away:\n%s", j)
	}
}

func TestWrongVariables(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization:"+secret)
	t.Setenv("OTEL_TRACES_SAMPLER", "sometimes")
	j := &journal{}
	if p := Start(t.Context(), "1", slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug}))); p != nil {
		t.Error("a collector without a scheme was taken")
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
	p := Start(t.Context(), "1", slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if p == nil {
		t.Fatal("a wrong sampler turns tracing off")
	}
	p.Stop()
	for words, n := range map[string]int{
		"variable=OTEL_EXPORTER_OTLP_ENDPOINT": 1, "variable=OTEL_EXPORTER_OTLP_HEADERS": 2, "variable=OTEL_TRACES_SAMPLER": 2,
		"no traces are exported": 1, "traces are exported": 2, secret: 0,
	} {
		if got := j.count(words); got != n {
			t.Errorf("%q is there %d times, want %d:\n%s", words, got, n, j)
		}
	}
}

func TestOff(t *testing.T) {
	for _, name := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER"} {
		t.Setenv(name, "")
	}
	j := &journal{}
	p := Start(t.Context(), "1", slog.New(slog.NewTextHandler(j, nil)))
	if p != nil || p.Tracer() != nil || p.MaxLinks() != 0 || j.String() != "" {
		t.Errorf("without variables: %+v, log %q", p, j)
	}
	p.Stop()
}

func TestHide(t *testing.T) {
	s := newSecrets([]string{"Bearer abcdef-123", "Bearer%20abcdef-123", "1"})
	for _, words := range []string{"Bearer abcdef-123", "abcdef-123", "x Bearer%20abcdef-123"} {
		if got := s.hide(fmt.Errorf("401\n b: %s", words)); strings.Contains(got, "abcdef") || !strings.HasPrefix(got, "401 b: ") {
			t.Errorf("%q became %q", words, got)
		}
	}
}
