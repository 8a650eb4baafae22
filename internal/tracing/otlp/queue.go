package otlp

import (
	"strconv"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// The most that a queue may have: the SDK takes any number, and panics of one
// that it cannot make, or runs in circles without a delay.
const (
	maxQueueSize  = 1_000_000
	maxQueueDelay = 24 * 60 * 60 * 1000 // ms
)

// within reports whether a variable is not set, or between 1 and most.
func (v variables) within(name string, most int) bool {
	if v(name) == "" {
		return true
	}
	n, err := strconv.Atoi(v(name))
	return err == nil && n >= 1 && n <= most
}

// queue corrects what the SDK made of variables that cannot be, which faults
// told of.
func (v variables) queue(o *sdktrace.BatchSpanProcessorOptions) {
	if !v.within(envQueueSize, maxQueueSize) {
		o.MaxQueueSize = sdktrace.DefaultMaxQueueSize
	}
	if !v.within(envQueueBatch, maxQueueSize) || o.MaxExportBatchSize < 1 { // the SDK takes it from the size of the queue at times
		o.MaxExportBatchSize = sdktrace.DefaultMaxExportBatchSize
	}
	o.MaxExportBatchSize = min(o.MaxExportBatchSize, o.MaxQueueSize)
	if !v.within(envQueueDelay, maxQueueDelay) {
		o.BatchTimeout = sdktrace.DefaultScheduleDelay * time.Millisecond
	}
}
