// Package metrics holds what the relay tells Prometheus. docs/metrics.md is
// generated from it.
//
// No label is a key or an id. Topics are labels; since nothing keeps an
// application from making up topics without end, those beyond the first
// MaxTopics share the label value OtherTopics.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/outboxrelay/relay/sinks"
)

// Bounds of the label topic.
const (
	MaxTopics   = 500
	OtherTopics = "_other"
)

// Relay is the metrics of one relay. Its methods may be called concurrently.
type Relay struct {
	topics topics

	published       *prometheus.CounterVec
	failures        *prometheus.CounterVec
	givenUp         *prometheus.CounterVec
	unsettled       prometheus.Counter
	latency         prometheus.Histogram
	claimDuration   prometheus.Histogram
	publishDuration *prometheus.HistogramVec
	settleDuration  prometheus.Histogram
	batchSize       prometheus.Histogram
	sinkUp          *prometheus.GaugeVec
	throttled       *throttled
	databaseUp      prometheus.Gauge

	pending     *prometheus.GaugeVec
	oldest      *prometheus.GaugeVec
	parkedKeys  *prometheus.GaugeVec
	deadLetters *prometheus.GaugeVec
	backlogAge  prometheus.Gauge

	sinks []string
}

// Build is what outbox_relay_build_info says.
type Build struct {
	Version, Commit, GoVersion string
}

// seconds are the buckets of durations: from a fast round trip to an outage.
var seconds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800}

const namespace = "outbox_relay"

// New registers the metrics of a relay whose sinks have these names.
func New(registerer prometheus.Registerer, build Build, names []string) *Relay {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets})
	}
	r := &Relay{
		topics:    newTopics(),
		published: counter("published_total", "Messages that the broker acknowledged and that were marked.", "topic", "sink"),
		failures:  counter("publish_failures_total", "Messages that could not be published, by attempt: refused, or not answered for.", "topic", "sink", "reason"),
		givenUp:   counter("given_up_total", "Messages that were given up: moved to the dead letters, or skipped.", "topic", "policy"),
		unsettled: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Name: "unsettled_messages_total",
			Help: "Messages that were acknowledged and could not be marked: they are published again.",
		}),
		latency: histogram("end_to_end_latency_seconds", "From a row's created_at to the broker's acknowledgement; the delay of a delayed row is part of it.", seconds),
		claimDuration: histogram("claim_duration_seconds",
			"Claiming a batch: locking, reading, and waiting until it is on disk. Claims that found nothing do not count.", seconds),
		publishDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "publish_duration_seconds", Buckets: seconds,
			Help: "From handing a batch to the sink to its last answer.",
		}, []string{"sink"}),
		settleDuration: histogram("settle_duration_seconds", "Marking a batch and committing.", seconds),
		batchSize:      histogram("batch_size", "Rows in a batch.", prometheus.ExponentialBuckets(1, 4, 8)),
		sinkUp:         gauge("sink_up", "1 while the sink's broker answers, 0 while it is away.", "sink"),
		throttled:      newThrottled(),
		databaseUp:     prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: "database_up", Help: "1 while the outbox can be read, 0 while it cannot."}),
		pending:        gauge("pending_messages", "Messages that are due and not published, those that wait behind a parked key included. An estimate when there are many.", "topic"),
		oldest:         gauge("oldest_pending_age_seconds", "Age of the oldest message that is due and not published; 0 without one.", "topic"),
		parkedKeys:     gauge("parked_keys", "Keys (and messages without a key) that a refused message holds back.", "topic"),
		deadLetters:    gauge("dead_letters", "Messages in the table of dead letters.", "topic"),
		backlogAge: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Name: "backlog_read_timestamp_seconds",
			Help: "When pending messages, parked keys and dead letters were last counted, as a Unix time.",
		}),
		sinks: names,
	}
	info := gauge("build_info", "1; the labels say what runs.", "version", "commit", "goversion")
	info.WithLabelValues(build.Version, build.Commit, build.GoVersion).Set(1)
	for _, sink := range names {
		r.sinkUp.WithLabelValues(sink).Set(0)
		r.publishDuration.WithLabelValues(sink)
	}
	registerer.MustRegister(r.published, r.failures, r.givenUp, r.unsettled, r.latency, r.claimDuration, r.publishDuration, r.settleDuration,
		r.batchSize, r.sinkUp, r.throttled, r.databaseUp, r.pending, r.oldest, r.parkedKeys, r.deadLetters, r.backlogAge, info)
	return r
}

// Claimed tells of a claim that returned rows.
func (r *Relay) Claimed(took time.Duration, rows int) {
	r.claimDuration.Observe(took.Seconds())
	r.batchSize.Observe(float64(rows))
}

// Expect tells that messages of the topic go to the sink, when there are any.
// Its counters are there from then on, at 0, so that Prometheus sees the first
// message as an increase.
func (r *Relay) Expect(topic, sink string) { r.begin(r.topics.label(topic), sink) }

// begin makes the counters of a topic. Its failures begin with the reason of
// errors that nobody classified, of the many that there are: with it a topic
// that has had no failure shows that, rather than no data.
func (r *Relay) begin(label, sink string) {
	r.published.WithLabelValues(label, sink)
	r.failures.WithLabelValues(label, sink, sinks.ReasonOther)
}

// Published tells that n messages of the topic were acknowledged.
func (r *Relay) Published(topic, sink string, n int) {
	label := r.topics.label(topic)
	r.begin(label, sink)
	r.published.WithLabelValues(label, sink).Add(float64(n))
}

// Acknowledged tells how long after a message was written it was acknowledged.
// Clocks of two machines differ: a negative time counts as none. A message whose
// writer gave it no time that can be true, as the year 1, tells nothing.
func (r *Relay) Acknowledged(age time.Duration) {
	if age < maxAge {
		r.latency.Observe(max(age.Seconds(), 0))
	}
}

// maxAge is more than a message can have waited.
const maxAge = 100 * 365 * 24 * time.Hour

// Failed tells that n messages of the topic were not published, once per
// attempt.
func (r *Relay) Failed(topic, sink, reason string, n int) {
	label := r.topics.label(topic)
	r.begin(label, sink)
	r.failures.WithLabelValues(label, sink, reason).Add(float64(n))
}

// GivenUp tells that a message went to the dead letters, or was skipped.
func (r *Relay) GivenUp(topic, policy string) {
	r.givenUp.WithLabelValues(r.topics.label(topic), policy).Inc()
}

// Unsettled tells that n messages were acknowledged and could not be marked.
func (r *Relay) Unsettled(n int) { r.unsettled.Add(float64(n)) }

// PublishTook tells how long a sink took for its part of a batch.
func (r *Relay) PublishTook(sink string, took time.Duration) {
	r.publishDuration.WithLabelValues(sink).Observe(took.Seconds())
}

// SettleTook tells how long marking and committing a batch took.
func (r *Relay) SettleTook(took time.Duration) { r.settleDuration.Observe(took.Seconds()) }

// SinkUp tells whether a sink's broker answers.
func (r *Relay) SinkUp(sink string, up bool) { r.sinkUp.WithLabelValues(sink).Set(number(up)) }

// DatabaseUp tells whether the outbox can be read.
func (r *Relay) DatabaseUp(up bool) { r.databaseUp.Set(number(up)) }

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
