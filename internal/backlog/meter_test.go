package backlog

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/outboxrelay/relay/internal/metrics"
	"github.com/outboxrelay/relay/internal/pgtest"
)

// A topic's pending rows and its dead letters are read from different tables.
func TestRead(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key, payload) VALUES ('both', 'a', ''), ('both', 'b', ''), ('pending', null, '')`,
		`INSERT INTO outbox_dead_letters (id, message_id, topic, type, content_type, headers, created_at, attempts, reason, error, first_failed_at, last_failed_at)
		 SELECT id, message_id, topic, type, content_type, headers, created_at, 1, 'x', 'x', now(), now() FROM outbox WHERE topic = 'both'`)
	registry := prometheus.NewRegistry()
	meter := NewMeter(db.Pool, "public", "outbox", metrics.New(registry, metrics.Build{}, []string{"main"}), slog.New(slog.NewTextHandler(t.Output(), nil)))
	expect := func(want map[string]float64) {
		t.Helper()
		if err := meter.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		for name, value := range want {
			if got := gauges(t, registry)[name]; got != value {
				t.Errorf("%s is %v, want %v", name, got, value)
			}
		}
	}
	expect(map[string]float64{"pending_messages both": 2, "pending_messages pending": 1, "dead_letters both": 2})
	db.Exec(t, "DELETE FROM outbox WHERE topic = 'both' AND key = 'a'", "DELETE FROM outbox_dead_letters")
	expect(map[string]float64{"pending_messages both": 1, "pending_messages pending": 1, "dead_letters both": 0})
}

// gauges returns the gauges that have a topic, as "name topic".
func gauges(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "topic" && metric.GetGauge() != nil {
					values[strings.TrimPrefix(family.GetName(), "outbox_relay_")+" "+label.GetValue()] = metric.GetGauge().GetValue()
				}
			}
		}
	}
	return values
}
