package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/outboxrelay/relay/e2e/child"
	"github.com/outboxrelay/relay/e2e/servers"
)

// TestInboxMetrics has a consumer of each broker process messages, one of them
// poison, and five that it had before, and reads what it tells Prometheus.
func TestInboxMetrics(t *testing.T) {
	t.Parallel()
	environment := servers.FromEnvironment()
	const messages, poison, again = 30, 13, 5
	for _, test := range []struct {
		name string
		// new makes the stage with the messages; more publishes some of them
		// again.
		new  func(t *testing.T) (s *inboxStage, source, url string, more func())
		want []string
	}{
		{"kafka", func(t *testing.T) (*inboxStage, string, string, func()) {
			k := newKafkaInbox(t, environment.PostgresURL, environment.KafkaBrokers)
			k.publish(messages)
			return &k.inboxStage, k.topic, k.client.Addr.String(), func() { k.send(1, again) }
		}, []string{`inbox_assigned_partitions{consumer="billing",source="SOURCE"} 6`, `sum(inbox_lag_messages) 0`}},
		{"rabbitmq", func(t *testing.T) (*inboxStage, string, string, func()) {
			b := newRabbitInbox(t, environment.PostgresURL, environment.RabbitMQURL, "classic")
			b.publish(messages)
			return &b.inboxStage, b.queue, b.url, func() { b.send([]int{1, 2, 3, 4, 5}) }
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			binary, err := buildConsumer()
			try(t, err)
			s, source, url, more := test.new(t)
			log := filepath.Join(t.TempDir(), "consumer.log")
			consumer, err := child.Start(exec.Command(binary, "--broker", test.name, "--database", s.database.URL, "--url", url,
				"--source", source, "--name", "billing", "--metrics", "--session", "10s", "--poison", strconv.Itoa(poison)), log)
			try(t, err)
			defer consumer.Kill()
			var page string
			s.await("the effects", func() bool { return s.done() == messages-1 })
			more()
			label := fmt.Sprintf(`{consumer="billing",source=%q}`, source)
			result := func(result string, n int) string {
				return fmt.Sprintf(`inbox_messages_total{consumer="billing",result=%q,source=%q} %d`, result, source, n)
			}
			want := []string{
				result("processed", messages-1), result("duplicate", again), result("parked", 1), result("dead_lettered", 0), result("stale", 0),
				fmt.Sprintf(`inbox_failures_total{consumer="billing",reason="handler",source=%q} 3`, source),
				fmt.Sprintf(`inbox_failures_total{consumer="billing",reason="database",source=%q} 0`, source),
				"inbox_retries_total" + label + " 2",
				"inbox_put_aside_failures_total" + label + " 0", "inbox_acknowledgement_failures_total" + label + " 0",
				"inbox_in_flight_messages" + label + " 0",
				fmt.Sprintf("inbox_handler_duration_seconds_count%s %d", label, messages-1+3),
				fmt.Sprintf("inbox_transaction_duration_seconds_count%s %d", label, messages-1+3+again),
				fmt.Sprintf("inbox_end_to_end_latency_seconds_count%s %d", label, messages-1),
				`inbox_database_up{consumer="billing"} 1`, "inbox_broker_up" + label + " 1",
			}
			for _, line := range test.want {
				want = append(want, strings.ReplaceAll(line, "SOURCE", source))
			}
			var missing []string
			s.await("true metrics", func() bool {
				page, missing = scrape(log), nil
				for _, line := range want {
					if !strings.Contains(page, "\n"+line+"\n") {
						missing = append(missing, line)
					}
				}
				return len(missing) == 0 || !consumer.Running() || t.Context().Err() != nil
			})
			if len(missing) > 0 {
				t.Errorf("the metrics do not say\n%s\nbut\n%s\n%s", strings.Join(missing, "\n"), page, consumer.Tail(20))
			}
			if strings.Contains(page, "order-") || strings.Contains(page, messageID(1)) {
				t.Errorf("a key or an id is in the metrics:\n%s", page)
			}
			consumer.Signal(syscall.SIGTERM)
			try(t, consumer.Err())
		})
	}
}

var (
	metricsAddress = regexp.MustCompile(`metrics=(\S+)`)
	lagOfPartition = regexp.MustCompile(`(?m)^inbox_lag_messages\{.*\} (\S+)$`)
)

// scrape gets the metrics from the address in a consumer's log, with a line for
// the sum of its partitions' lags; empty when it does not answer.
func scrape(log string) string {
	text, err := os.ReadFile(log)
	if err != nil {
		return ""
	}
	address := metricsAddress.FindSubmatch(text)
	if address == nil {
		return ""
	}
	response, err := http.Get("http://" + string(address[1]) + "/metrics")
	if err != nil {
		return ""
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return ""
	}
	lags := lagOfPartition.FindAllStringSubmatch(string(body), -1)
	sum := 0.0
	for _, lag := range lags {
		n, _ := strconv.ParseFloat(lag[1], 64)
		sum += n
	}
	page := "\n" + string(body)
	if len(lags) == kafkaPartitions {
		page += fmt.Sprintf("sum(inbox_lag_messages) %v\n", sum)
	}
	return page
}
