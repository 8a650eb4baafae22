package main

import (
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/metrics"
)

// newMeter registers the relay's metrics, Go's and the process's.
func newMeter(registry *prometheus.Registry, c *config.Config) *metrics.Relay {
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	build := readBuild()
	return metrics.New(registry, metrics.Build{Version: build.Version, Commit: build.Commit, GoVersion: build.Go},
		slices.Sorted(maps.Keys(c.Sinks)))
}
