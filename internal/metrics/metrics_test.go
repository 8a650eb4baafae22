package metrics_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/outboxrelay/relay/internal/metrics"
)

func TestTopicsAreBounded(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := metrics.New(registry, metrics.Build{}, []string{"main"})
	for i := range metrics.MaxTopics + 50 {
		m.Published(fmt.Sprintf("topic-%d", i), "main", 2)
	}
	n, err := testutil.GatherAndCount(registry, "outbox_relay_published_total")
	if err != nil || n != metrics.MaxTopics+1 {
		t.Errorf("%d series, %v; want %d", n, err, metrics.MaxTopics+1)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "outbox_relay_published_total" {
			continue
		}
		for _, s := range f.GetMetric() {
			for _, l := range s.GetLabel() {
				if l.GetValue() == metrics.OtherTopics && s.GetCounter().GetValue() != 100 {
					t.Errorf("the others are %v; want 100", s)
				}
			}
		}
	}
}

// The zero time of a writer is no latency, and a clock that is behind no negative one.
func TestLatencyThatCannotBe(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := metrics.New(registry, metrics.Build{}, []string{"main"})
	now := time.Now()
	for _, created := range []time.Time{{}, now.Add(time.Hour), now.AddDate(-2000, 0, 0), now} {
		m.Acknowledged(now.Sub(created))
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "outbox_relay_end_to_end_latency_seconds" {
			if h := f.GetMetric()[0].GetHistogram(); h.GetSampleCount() != 2 || h.GetSampleSum() != 0 {
				t.Errorf("%d messages took %g s in all; want 2 that took none", h.GetSampleCount(), h.GetSampleSum())
			}
		}
	}
}

func TestBacklogForgetsWhatIsDone(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := metrics.New(registry, metrics.Build{}, []string{"main"})
	m.Backlog(time.Unix(1000, 0), []metrics.TopicBacklog{{Topic: "a", Pending: 5, OldestAge: 7, ParkedKeys: 1, DeadLetters: 2}})
	m.Backlog(time.Unix(1005, 0), []metrics.TopicBacklog{{Topic: "b", Pending: 3, OldestAge: 1}})
	want := `
# HELP outbox_relay_backlog_read_timestamp_seconds When pending messages, parked keys and dead letters were last counted, as a Unix time.
# TYPE outbox_relay_backlog_read_timestamp_seconds gauge
outbox_relay_backlog_read_timestamp_seconds 1005
# HELP outbox_relay_dead_letters Messages in the table of dead letters.
# TYPE outbox_relay_dead_letters gauge
outbox_relay_dead_letters{topic="a"} 0
outbox_relay_dead_letters{topic="b"} 0
# HELP outbox_relay_oldest_pending_age_seconds Age of the oldest message that is due and not published; 0 without one.
# TYPE outbox_relay_oldest_pending_age_seconds gauge
outbox_relay_oldest_pending_age_seconds{topic="a"} 0
outbox_relay_oldest_pending_age_seconds{topic="b"} 1
# HELP outbox_relay_published_total Messages that the broker acknowledged and that were marked.
# TYPE outbox_relay_published_total counter
outbox_relay_published_total{sink="main",topic="a"} 0
outbox_relay_published_total{sink="main",topic="b"} 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "outbox_relay_backlog_read_timestamp_seconds",
		"outbox_relay_dead_letters", "outbox_relay_oldest_pending_age_seconds", "outbox_relay_published_total"); err != nil {
		t.Error(err)
	}
}

func TestTopicsThatRoutesNameBeginAtZero(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := metrics.New(registry, metrics.Build{}, []string{"mail", "main"})
	m.Expect("orders", "main")
	m.Published("invoices", "main", 3)
	m.Failed("letters", "mail", "unroutable", 2)
	m.Backlog(time.Unix(1000, 0), nil)
	want := `
# HELP outbox_relay_pending_messages Messages that are due and not published, those that wait behind a parked key included. An estimate when there are many.
# TYPE outbox_relay_pending_messages gauge
outbox_relay_pending_messages{topic="invoices"} 0
outbox_relay_pending_messages{topic="letters"} 0
outbox_relay_pending_messages{topic="orders"} 0
# HELP outbox_relay_publish_failures_total Messages that could not be published, by attempt: refused, or not answered for.
# TYPE outbox_relay_publish_failures_total counter
outbox_relay_publish_failures_total{reason="other",sink="mail",topic="letters"} 0
outbox_relay_publish_failures_total{reason="other",sink="main",topic="invoices"} 0
outbox_relay_publish_failures_total{reason="other",sink="main",topic="orders"} 0
outbox_relay_publish_failures_total{reason="unroutable",sink="mail",topic="letters"} 2
# HELP outbox_relay_published_total Messages that the broker acknowledged and that were marked.
# TYPE outbox_relay_published_total counter
outbox_relay_published_total{sink="mail",topic="letters"} 0
outbox_relay_published_total{sink="main",topic="invoices"} 3
outbox_relay_published_total{sink="main",topic="orders"} 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "outbox_relay_pending_messages",
		"outbox_relay_publish_failures_total", "outbox_relay_published_total"); err != nil {
		t.Error(err)
	}
}

func TestStatesAreThereFromTheStart(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := metrics.New(registry, metrics.Build{Version: "v1", Commit: "c", GoVersion: "go"}, []string{"mail", "main"})
	want := `
# HELP outbox_relay_build_info 1; the labels say what runs.
# TYPE outbox_relay_build_info gauge
outbox_relay_build_info{commit="c",goversion="go",version="v1"} 1
# HELP outbox_relay_sink_up 1 while the sink's broker answers, 0 while it is away.
# TYPE outbox_relay_sink_up gauge
outbox_relay_sink_up{sink="mail"} 0
outbox_relay_sink_up{sink="main"} %d
`
	compare := func(up int) {
		t.Helper()
		if err := testutil.GatherAndCompare(registry, strings.NewReader(fmt.Sprintf(want, up)), "outbox_relay_sink_up", "outbox_relay_build_info"); err != nil {
			t.Error(err)
		}
	}
	compare(0)
	m.SinkUp("main", true)
	compare(1)
}

// A database in SQL_ASCII holds any bytes, and a label must not.
func TestTopicThatIsNoUTF8(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := metrics.New(registry, metrics.Build{}, []string{"main"})
	m.Published("bad\xff", "main", 2)
	m.Backlog(time.Unix(1000, 0), []metrics.TopicBacklog{{Topic: "bad\xff", Pending: 5}})
	want := `
# HELP outbox_relay_published_total Messages that the broker acknowledged and that were marked.
# TYPE outbox_relay_published_total counter
outbox_relay_published_total{sink="main",topic="bad�"} 2
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "outbox_relay_published_total"); err != nil {
		t.Error(err)
	}
}
