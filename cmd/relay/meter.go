package main

import (
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/metrics"
	"github.com/outboxrelay/relay/sinks"
)

// newMeter registers the relay's metrics, Go's and the process's. Topics that a
// route names have theirs before the first message.
func newMeter(registry *prometheus.Registry, c *config.Config) *metrics.Relay {
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	build := readBuild()
	meter := metrics.New(registry, metrics.Build{Version: build.Version, Commit: build.Commit, GoVersion: build.Go},
		slices.Sorted(maps.Keys(c.Sinks)))
	for _, r := range c.Table().Routes() {
		if topic, ok := r.Topic(); ok {
			meter.Expect(topic, r.Sink())
		}
	}
	return meter
}

// meterThrottles has the metrics say for how long brokers throttle the sinks.
func meterThrottles(meter *metrics.Relay, all publishers) {
	for name, publisher := range all {
		if by, ok := publisher.(sinks.Throttler); ok {
			meter.Throttled(name, by)
		}
	}
}
