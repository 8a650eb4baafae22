package e2e_test

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/proxy"
	"github.com/outboxrelay/relay/e2e/scenario"
)

// metric is a series' value on the relay's /metrics, and whether it is there.
func metric(t *testing.T, relay *scenario.Relay, series string) (float64, bool) {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(relay.Page("/metrics"))
	if m == nil {
		return 0, false
	}
	value, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatalf("%s: %v", series, err)
	}
	return value, true
}

func awaitMetric(t *testing.T, relay *scenario.Relay, series string, good func(float64) bool) {
	t.Helper()
	scenario.Await(t, 60*time.Second, series, func() (bool, string) {
		value, there := metric(t, relay, series)
		return there && good(value), fmt.Sprintf("it is %v (there: %t)", value, there)
	})
}

func equals(want float64) func(float64) bool { return func(got float64) bool { return got == want } }

func TestMetrics(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, scenario.Settings{
		"failures.max_attempts": 2, "failures.backoff.initial": "10ms",
		"sinks.main.kafka.max_message_bytes": 10_000,
	})
	key, poisoned := "k", "poisoned"
	for range 20 {
		stage.Insert(stage.Topic(), &key, "small")
	}
	relay := stage.Start()
	of := func(name, labels string) string { return fmt.Sprintf(name+"{"+labels+"}", stage.Topic()) }

	awaitMetric(t, relay, of("outbox_relay_published_total", `sink="main",topic="%s"`), equals(20))
	awaitMetric(t, relay, `outbox_relay_sink_up{sink="main"}`, equals(1))
	awaitMetric(t, relay, `outbox_relay_database_up`, equals(1))
	awaitMetric(t, relay, of("outbox_relay_pending_messages", `topic="%s"`), equals(0))
	for _, series := range []string{
		"outbox_relay_end_to_end_latency_seconds_count", "outbox_relay_claim_duration_seconds_count", "outbox_relay_settle_duration_seconds_count",
		`outbox_relay_publish_duration_seconds_count{sink="main"}`, "outbox_relay_batch_size_count",
	} {
		awaitMetric(t, relay, series, func(v float64) bool { return v >= 1 })
	}
	awaitMetric(t, relay, "outbox_relay_batch_size_sum", equals(20))

	// A message that the broker refuses, and three that wait behind it.
	large := stage.Insert(stage.Topic(), &poisoned, strings.Repeat("x", 20_000))
	stage.Undo(large.MessageID, "it is too large")
	for range 3 {
		stage.Undo(stage.Insert(stage.Topic(), &poisoned, "waits").MessageID, "it waits behind one that is too large")
	}
	awaitMetric(t, relay, of("outbox_relay_parked_keys", `topic="%s"`), equals(1))
	awaitMetric(t, relay, of("outbox_relay_pending_messages", `topic="%s"`), equals(4))
	awaitMetric(t, relay, of("outbox_relay_oldest_pending_age_seconds", `topic="%s"`), func(v float64) bool { return v > 0 && v < 600 })
	if page := relay.Page("/metrics"); !strings.Contains(page, `outbox_relay_publish_failures_total{reason="message_too_large"`) {
		t.Error("no failure is counted")
	} else if strings.Contains(page, poisoned) || strings.Contains(page, large.MessageID.String()) {
		t.Error("a key or an id is on the page")
	}

	if result := relay.Command("parked", "skip", "--topic", stage.Topic(), "--key", poisoned, "--yes"); result.Code != 0 {
		t.Fatal(result)
	}
	awaitMetric(t, relay, of("outbox_relay_dead_letters", `topic="%s"`), equals(1))
	awaitMetric(t, relay, of("outbox_relay_parked_keys", `topic="%s"`), equals(0))
	awaitMetric(t, relay, of("outbox_relay_published_total", `sink="main",topic="%s"`), equals(23))
	awaitMetric(t, relay, of("outbox_relay_oldest_pending_age_seconds", `topic="%s"`), equals(0))
	relay.Stop()
}

func TestSinkUpFollowsTheBroker(t *testing.T) {
	t.Parallel()
	stage := scenario.NewRabbitStage(t, nil)
	address := regexp.MustCompile(`@([^/]+)/`)
	url := fmt.Sprint(stage.Config["sinks"].(scenario.Config)["main"].(scenario.Config)["rabbitmq"].(scenario.Config)["url"])
	between, err := proxy.New(address.FindStringSubmatch(url)[1])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = between.Close() })
	relay := stage.Relay(scenario.Settings{"sinks.main.rabbitmq.url": address.ReplaceAllString(url, "@"+between.Address()+"/")})
	relay.Start()
	const up = `outbox_relay_sink_up{sink="main"}`
	awaitMetric(t, relay, up, equals(1))
	for name, fault := range map[string]func(){
		"refused": func() { between.Refuse(); between.Cut() },
		"frozen":  between.Freeze,
	} {
		fault()
		began := time.Now()
		awaitMetric(t, relay, up, equals(0))
		t.Logf("%s: seen after %v", name, time.Since(began).Round(100*time.Millisecond))
		if !relay.Ready() {
			t.Errorf("%s: a broker's outage makes the relay unready", name)
		}
		between.Cut()
		if err := between.Pass(); err != nil {
			t.Fatal(err)
		}
		awaitMetric(t, relay, up, equals(1))
	}
	relay.Stop()
}
