// Package otlp exports the relay's spans over OTLP, as the standard environment
// variables of OpenTelemetry say, and not at all where they say nothing.
//
// Spans are worth less than what they tell of: they are kept in a bounded queue
// and dropped when it is full, a collector that is away or hangs is logged once
// and costs nothing but the spans, and a stop waits for it a moment at most.
package otlp

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

const (
	// scope names the library that the spans are of.
	scope = "github.com/outboxrelay/relay"
	// defaultServiceName is overridden by OTEL_SERVICE_NAME and by
	// OTEL_RESOURCE_ATTRIBUTES.
	defaultServiceName = "outbox-relay"
	// stopTimeout bounds what a stop waits for the last spans to be exported.
	stopTimeout = 3 * time.Second
)

// Provider exports spans. All methods may be called on a nil Provider, which
// stands for tracing that is off, and concurrently.
type Provider struct {
	sdk    *sdktrace.TracerProvider
	gauge  *gauge
	tracer trace.Tracer
	// maxLinks is how many links the SDK keeps of a span; negative: all.
	maxLinks int
	// abandon ends exports that are under way.
	abandon context.CancelFunc
	stopped sync.Once
}

// Start returns a Provider as the environment says, nil when it asks for no
// traces or names a collector that cannot be. It does not wait for a
// collector. What is wrong with the variables is logged, and is no failure.
//
// It sets the process's handlers of what OpenTelemetry's SDK has to say, which
// otherwise go to stderr and may show the variables' values.
func Start(ctx context.Context, version string, logger *slog.Logger) *Provider {
	if v := readVariables(); v.wanted() {
		return v.start(ctx, version, logger)
	}
	return nil
}

func (v variables) start(ctx context.Context, version string, logger *slog.Logger) *Provider {
	secrets := v.secrets()
	faults := v.faults()
	off := false
	for _, f := range faults {
		consequence := "it is ignored"
		if f.fatal {
			consequence, off = "no traces are exported", true
		}
		logger.Warn("a variable of OpenTelemetry is wrong; "+consequence, "variable", f.variable, "problem", f.problem)
	}
	if off {
		return nil
	}
	// The variables were checked above, with better words and without their values.
	otel.SetLogger(logr.Discard())
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		logger.Debug("OpenTelemetry reports an error", "error", secrets.hide(err))
	}))
	exporter, err := v.exporter(ctx)
	if err != nil {
		logger.Warn("the exporter of traces cannot be made; no traces are exported", "error", secrets.hide(err))
		return nil
	}
	exporting, abandon := context.WithCancel(context.WithoutCancel(ctx))
	g := &gauge{logger: logger, endpoint: v.endpoint()}
	var size int
	queue := sdktrace.NewBatchSpanProcessor(&countedExporter{SpanExporter: exporter, gauge: g, until: exporting, secrets: secrets},
		v.queue, func(o *sdktrace.BatchSpanProcessorOptions) { size = o.MaxQueueSize })
	g.capacity = int64(size)
	limits := sdktrace.NewSpanLimits()
	p := &Provider{
		sdk: sdktrace.NewTracerProvider(
			sdktrace.WithResource(newResource(ctx, version)),
			sdktrace.WithRawSpanLimits(limits),
			sdktrace.WithSpanProcessor(&countedQueue{SpanProcessor: queue, gauge: g}),
		),
		gauge: g, abandon: abandon, maxLinks: limits.LinkCountLimit,
	}
	p.tracer = p.sdk.Tracer(scope, trace.WithInstrumentationVersion(version), trace.WithSchemaURL(semconv.SchemaURL))
	logger.Info("traces are exported", "endpoint", g.endpoint, "protocol", v.protocol())
	return p
}

// exporter makes the exporter of the protocol; it reads the environment itself.
func (v variables) exporter(ctx context.Context) (sdktrace.SpanExporter, error) {
	if v.protocol() == protocolGRPC {
		return otlptracegrpc.New(ctx)
	}
	return otlptracehttp.New(ctx)
}

// newResource says who exports; the environment has the last word.
func newResource(ctx context.Context, version string) *resource.Resource {
	r, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithHost(),
		resource.WithAttributes(semconv.ServiceName(defaultServiceName), semconv.ServiceVersion(version)),
		resource.WithFromEnv(),
	)
	if err != nil {
		otel.Handle(fmt.Errorf("the resource of the spans is incomplete: %w", err))
	}
	return r
}

// Tracer makes the relay's spans; nil when tracing is off.
func (p *Provider) Tracer() trace.Tracer {
	if p == nil {
		return nil
	}
	return p.tracer
}

// MaxLinks is how many links a span keeps; negative: all.
func (p *Provider) MaxLinks() int {
	if p == nil {
		return 0
	}
	return p.maxLinks
}

// Stop exports what is left, which takes a few seconds at most, and ends. Later
// calls do nothing.
func (p *Provider) Stop() {
	if p == nil {
		return
	}
	p.stopped.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		_ = p.sdk.Shutdown(ctx) // what failed was told by the exporter; what did not end is told now
		p.gauge.stop()
		p.abandon()
	})
}
