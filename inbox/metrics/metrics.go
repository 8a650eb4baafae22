// Package metrics makes Prometheus metrics of what an inbox does, and the
// consumers of packages kafka and rabbitmq that have it.
//
//	box := &inbox.Inbox{Consumer: "shipping", Observer: metrics.New(prometheus.DefaultRegisterer)}
//
// docs/metrics.md lists them; it is generated from this package. No label is a
// key or an id. Topics and queues are labels; those beyond the first MaxSources
// share the label value OtherSources.
package metrics

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/outboxrelay/relay/inbox"
)

// Bounds of the label source.
const (
	MaxSources   = 100
	OtherSources = "_other"
)

// Metrics is an inbox.Observer and an inbox.ConsumerObserver.
type Metrics struct {
	inbox.Unobserved
	sources sources

	messages         *prometheus.CounterVec
	failures         *prometheus.CounterVec
	retries          *prometheus.CounterVec
	putAsideFailures *prometheus.CounterVec
	ackFailures      *prometheus.CounterVec
	pruned           prometheus.Counter

	transactionDuration *prometheus.HistogramVec
	handlerDuration     *prometheus.HistogramVec
	latency             *prometheus.HistogramVec

	inFlight   *prometheus.GaugeVec
	partitions *prometheus.GaugeVec
	lag        *prometheus.GaugeVec
	databaseUp *prometheus.GaugeVec
	brokerUp   *prometheus.GaugeVec
	breaker    *prometheus.GaugeVec
	paused     *prometheus.GaugeVec
}

// seconds are the buckets of durations: from a fast round trip to an outage.
var seconds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800}

const namespace = "inbox"

// New makes the metrics and registers them. One is enough for a process: give
// it to all its inboxes. A second one on the same registerer panics.
func New(registerer prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, labels)
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: seconds}, []string{"consumer", "source"})
	}
	m := &Metrics{
		sources: newSources(),
		messages: counter("messages_total", "Messages by what became of them: processed, duplicate (had been processed), late (processed after a later one of its key), "+
			"stale (not processed for that), parked or dead_lettered (given up).", "consumer", "source", "result"),
		failures: counter("failures_total", "Attempts to process a message, or a batch, that failed. The message is to blame for handler, panic, timeout, commit and no_id; "+
			"database (away), contention (locks, deadlocks, serialization failures) and interrupted are not, and do not count as attempts.", "consumer", "source", "reason"),
		retries: counter("retries_total", "Transactions, messages and batches that were tried again.", "consumer", "source"),
		putAsideFailures: counter("put_aside_failures_total", "Attempts to park or dead-letter a message that failed: what is behind it waits.",
			"consumer", "source"),
		ackFailures: counter("acknowledgement_failures_total", "Acknowledgements, or commits of offsets, that did not reach the broker: the messages come again, as duplicates.",
			"consumer", "source"),
		pruned:              prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: "pruned_ids_total", Help: "Ids that Inbox.Prune removed."}),
		transactionDuration: histogram("transaction_duration_seconds", "Transactions with their wait for a connection and for others that have the same message, duplicates and failures included."),
		handlerDuration:     histogram("handler_duration_seconds", "Handlers, of one message or of a batch, failed ones included."),
		latency: histogram("end_to_end_latency_seconds", "From when a message was written, as it says itself, to the commit of its effect. RabbitMQ's timestamps have whole seconds. "+
			"Replayed messages do not count."),
		inFlight:   gauge("in_flight_messages", "Messages that are being processed.", "consumer", "source"),
		partitions: gauge("assigned_partitions", "Kafka partitions that this process consumes.", "consumer", "source"),
		lag:        gauge("lag_messages", "Messages of an assigned Kafka partition that are yet to be processed; more where the topic is compacted or has transactions.", "consumer", "source", "partition"),
		databaseUp: gauge("database_up", "1 while the consumer's database can be used, 0 while it cannot, and before that is known.", "consumer"),
		brokerUp:   gauge("broker_up", "1 while the topic or queue can be read, 0 while it cannot, and before that is known.", "consumer", "source"),
		breaker:    gauge("breaker_open", "1 while messages wait because several in a row failed alike, and one is tried from time to time.", "consumer"),
		paused:     gauge("paused", "1 while the application has paused the consumer, or some of its topics.", "consumer"),
	}
	registerer.MustRegister(m.messages, m.failures, m.retries, m.putAsideFailures, m.ackFailures, m.pruned,
		m.transactionDuration, m.handlerDuration, m.latency, m.inFlight, m.partitions, m.lag, m.databaseUp, m.brokerUp, m.breaker, m.paused)
	return m
}

// results are the values of the label result.
var results = []string{
	inbox.Processed.String(), inbox.Duplicate.String(), inbox.Late.String(), inbox.Stale.String(), string(inbox.Parked), string(inbox.DeadLettered),
}

// source is the label of a source. All series of one begin when it is first
// seen, so that its first message is seen as an increase.
func (m *Metrics) source(consumer, source string) string {
	label, first := m.sources.label(consumer, source)
	if !first {
		return label
	}
	for _, result := range results {
		m.messages.WithLabelValues(consumer, label, result)
	}
	for _, reason := range inbox.Reasons() {
		m.failures.WithLabelValues(consumer, label, string(reason))
	}
	m.retries.WithLabelValues(consumer, label)
	m.putAsideFailures.WithLabelValues(consumer, label)
	m.ackFailures.WithLabelValues(consumer, label)
	m.transactionDuration.WithLabelValues(consumer, label)
	m.handlerDuration.WithLabelValues(consumer, label)
	m.latency.WithLabelValues(consumer, label)
	m.inFlight.WithLabelValues(consumer, label)
	return label
}

// Began implements inbox.Observer.
func (m *Metrics) Began(consumer string, messages []inbox.Message) { m.flight(consumer, messages, 1) }

// Ended implements inbox.Observer.
func (m *Metrics) Ended(outcome inbox.Outcome) {
	consumer := outcome.Consumer
	m.flight(consumer, outcome.Messages, -1)
	first := m.source(consumer, inbox.SourceOf(outcome.Messages[0]))
	m.transactionDuration.WithLabelValues(consumer, first).Observe(outcome.Took.Seconds())
	if outcome.HandlerRan {
		m.handlerDuration.WithLabelValues(consumer, first).Observe(outcome.Handler.Seconds())
	}
	now := time.Now()
	for n, result := range outcome.Results {
		message := &outcome.Messages[n]
		label := m.source(consumer, inbox.SourceOf(*message))
		m.messages.WithLabelValues(consumer, label, result.String()).Inc()
		if result.Ran() && !message.Time.IsZero() && !message.Replayed {
			// Clocks of two machines differ: a negative time counts as none.
			m.latency.WithLabelValues(consumer, label).Observe(max(now.Sub(message.Time).Seconds(), 0))
		}
	}
}

func (m *Metrics) flight(consumer string, messages []inbox.Message, sign float64) {
	for _, message := range messages {
		m.inFlight.WithLabelValues(consumer, m.source(consumer, inbox.SourceOf(message))).Add(sign)
	}
}

// Failed implements inbox.Observer.
func (m *Metrics) Failed(consumer, source string, reason inbox.Reason) {
	m.failures.WithLabelValues(consumer, m.source(consumer, source), string(reason)).Inc()
}

// Retried implements inbox.Observer.
func (m *Metrics) Retried(consumer, source string) {
	m.retries.WithLabelValues(consumer, m.source(consumer, source)).Inc()
}

// Pruned implements inbox.Observer.
func (m *Metrics) Pruned(ids int64) { m.pruned.Add(float64(ids)) }

// PutAside implements inbox.ConsumerObserver.
func (m *Metrics) PutAside(consumer, source string, to inbox.Aside) {
	m.messages.WithLabelValues(consumer, m.source(consumer, source), string(to)).Inc()
}

// PutAsideFailed implements inbox.ConsumerObserver.
func (m *Metrics) PutAsideFailed(consumer, source string) {
	m.putAsideFailures.WithLabelValues(consumer, m.source(consumer, source)).Inc()
}

// AcknowledgementFailed implements inbox.ConsumerObserver.
func (m *Metrics) AcknowledgementFailed(consumer, source string) {
	m.ackFailures.WithLabelValues(consumer, m.source(consumer, source)).Inc()
}

// DatabaseUp implements inbox.ConsumerObserver.
func (m *Metrics) DatabaseUp(consumer string, up bool) {
	m.databaseUp.WithLabelValues(consumer).Set(number(up))
}

// BrokerUp implements inbox.ConsumerObserver.
func (m *Metrics) BrokerUp(consumer, source string, up bool) {
	m.brokerUp.WithLabelValues(consumer, m.source(consumer, source)).Set(number(up))
}

// BreakerOpen implements inbox.ConsumerObserver.
func (m *Metrics) BreakerOpen(consumer string, open bool) {
	m.breaker.WithLabelValues(consumer).Set(number(open))
}

// Paused implements inbox.ConsumerObserver.
func (m *Metrics) Paused(consumer string, paused bool) {
	m.paused.WithLabelValues(consumer).Set(number(paused))
}

// Assigned implements inbox.ConsumerObserver.
func (m *Metrics) Assigned(consumer, topic string, _ int32) {
	m.partitions.WithLabelValues(consumer, m.source(consumer, topic)).Inc()
}

// Revoked implements inbox.ConsumerObserver.
func (m *Metrics) Revoked(consumer, topic string, partition int32) {
	label := m.source(consumer, topic)
	m.partitions.WithLabelValues(consumer, label).Dec()
	m.lag.DeleteLabelValues(consumer, label, strconv.Itoa(int(partition)))
}

// Lag implements inbox.ConsumerObserver.
func (m *Metrics) Lag(consumer, topic string, partition int32, messages int64) {
	label := m.source(consumer, topic)
	if label == OtherSources {
		return // two topics' partitions have one name
	}
	m.lag.WithLabelValues(consumer, label, strconv.Itoa(int(partition))).Set(float64(messages))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
