package metrics

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/outboxrelay/relay/sinks"
)

// throttled asks the sinks, when somebody asks it, for how long their brokers have
// throttled them.
type throttled struct {
	description *prometheus.Desc

	mu    sync.Mutex
	sinks map[string]sinks.Throttler
}

func newThrottled() *throttled {
	return &throttled{
		description: prometheus.NewDesc(prometheus.BuildFQName(namespace, "", "sink_throttled_seconds_total"),
			"For how long the sink's brokers wanted to be left alone, because the relay is over a quota (Kafka's producer_byte_rate or request_percentage). Messages wait meanwhile.",
			[]string{"sink"}, nil),
		sinks: map[string]sinks.Throttler{},
	}
}

// Throttled has a sink's time in the metrics from now on.
func (r *Relay) Throttled(sink string, by sinks.Throttler) {
	r.throttled.mu.Lock()
	defer r.throttled.mu.Unlock()
	r.throttled.sinks[sink] = by
}

// Describe implements prometheus.Collector.
func (t *throttled) Describe(descriptions chan<- *prometheus.Desc) { descriptions <- t.description }

// Collect implements prometheus.Collector.
func (t *throttled) Collect(metrics chan<- prometheus.Metric) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for sink, by := range t.sinks {
		metrics <- prometheus.MustNewConstMetric(t.description, prometheus.CounterValue, by.Throttled().Seconds(), sink)
	}
}
