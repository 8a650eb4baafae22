package otlp

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// gauge counts the spans on their way through the SDK's queue, which drops and
// tells nobody, and logs each change of its state once.
type gauge struct {
	logger   *slog.Logger
	endpoint string
	// capacity is how many spans wait at most, those of an export under way
	// included; waiting is how many do.
	capacity int64
	waiting  atomic.Int64
	// dropped are those that found the queue full, since the last export.
	dropped atomic.Int64

	mutex sync.Mutex
	// failing: the last export failed; dropping: spans were dropped before it.
	failing, dropping, stopped bool
	// lost counts the spans that were dropped or not exported since all was well.
	lost int64
}

// admit reports whether there is room for one more span.
func (g *gauge) admit() bool {
	if g.waiting.Add(1) <= g.capacity {
		return true
	}
	g.waiting.Add(-1)
	g.dropped.Add(1)
	return false
}

// exported tells of an export of n spans.
func (g *gauge) exported(n int, err error) {
	g.waiting.Add(-int64(n))
	dropped := g.dropped.Swap(0)
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.stopped {
		return
	}
	g.lost += dropped
	if err != nil {
		g.lost += int64(n)
	}
	switch {
	case err != nil && !g.failing:
		g.failing = true
		g.logger.Warn("traces cannot be exported; they are dropped until they can be, and relaying goes on",
			"endpoint", g.endpoint, "error", err)
	case err == nil && dropped > 0 && !g.dropping && !g.failing:
		g.dropping = true
		g.logger.Warn("more spans are made than the collector takes; what is too much is dropped, and relaying goes on",
			"endpoint", g.endpoint, "dropped", dropped, "remedy", "sample fewer traces with OTEL_TRACES_SAMPLER, or raise OTEL_BSP_MAX_QUEUE_SIZE")
	case err == nil && dropped == 0 && (g.failing || g.dropping):
		g.failing, g.dropping = false, false
		g.logger.Info("traces are exported again", "endpoint", g.endpoint, "lost_spans", g.lost)
		g.lost = 0
	}
}

// stop ends the telling, and tells what is left behind.
func (g *gauge) stop() {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.stopped = true
	if lost := g.lost + g.dropped.Load() + g.waiting.Load(); lost > 0 {
		g.logger.Warn("spans were not exported before the stop", "endpoint", g.endpoint, "lost_spans", lost)
	}
}

// countedQueue stands before the SDK's queue, which never finds itself full.
type countedQueue struct {
	sdktrace.SpanProcessor
	gauge *gauge
}

// OnEnd implements sdktrace.SpanProcessor.
func (q *countedQueue) OnEnd(s sdktrace.ReadOnlySpan) {
	if s.SpanContext().IsSampled() && q.gauge.admit() {
		q.SpanProcessor.OnEnd(s)
	}
}

// countedExporter stands behind it.
type countedExporter struct {
	sdktrace.SpanExporter
	gauge *gauge
	// until ends exports that a stop does not wait for.
	until   context.Context // it is a second bound of ExportSpans, whose context is the SDK's own
	secrets secrets
}

// ExportSpans implements sdktrace.SpanExporter. Its errors are told here alone.
func (e *countedExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.until, cancel)()
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if err != nil {
		err = errors.New(e.secrets.hide(err))
	}
	e.gauge.exported(len(spans), err)
	return nil
}
