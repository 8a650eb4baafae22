package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// quickRetries lets refused messages be tried again soon.
var quickRetries = scenario.Settings{"failures.backoff.initial": "50ms", "failures.backoff.max": "400ms", "log.level": "info"}

// together joins settings; later ones win.
func together(all ...scenario.Settings) scenario.Settings {
	joined := scenario.Settings{}
	for _, settings := range all {
		for path, value := range settings {
			joined[path] = value
		}
	}
	return joined
}

// bothLogs is a Kafka and a RabbitMQ that one relay feeds: the sinks main and
// mail.
type bothLogs struct {
	*scenario.KafkaLog
	rabbit *scenario.RabbitLog
}

func (b bothLogs) Topics() []string { return append(b.KafkaLog.Topics(), b.rabbit.Topics()...) }

func (b bothLogs) Records(ctx context.Context) ([]scenario.Record, error) {
	kafka, err := b.KafkaLog.Records(ctx)
	if err != nil {
		return nil, err
	}
	rabbit, err := b.rabbit.Records(ctx)
	return slices.Concat(kafka, rabbit), err
}

func (b bothLogs) order() string { return b.KafkaLog.Topics()[0] }
func (b bothLogs) mail() string  { return b.rabbit.Topics()[0] }

// newBothStage is a stage whose relays have two sinks.
func newBothStage(t *testing.T, kafka *scenario.KafkaLog, settings scenario.Settings) (*scenario.Stage, bothLogs) {
	t.Helper()
	logs := bothLogs{kafka, scenario.NewRabbitLog(t)}
	routed := scenario.Settings{
		"sinks.mail": logs.rabbit.Sink(),
		"routes": []any{
			scenario.Config{"match": scenario.Config{"topic": logs.mail()}, "sink": "mail"},
			scenario.Config{"match": scenario.Config{"topic": "*"}, "sink": "main"},
		},
	}
	return scenario.NewStage(t, scenario.NewDatabase(t), logs, together(routed, settings)), logs
}

// channelTo opens a channel that is closed when the test ends.
func channelTo(t *testing.T, url string) *amqp.Channel {
	t.Helper()
	connection, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	channel, err := connection.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return channel
}

func ownKafka(t *testing.T) *servers.Kafka {
	t.Helper()
	broker, err := servers.StartKafka(t.Context(), servers.KafkaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, broker)
	return broker
}

// try ends the test when a server cannot be stopped or started.
func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// published waits until the row is marked.
func published(t *testing.T, stage *scenario.Stage, rows ...scenario.Row) {
	t.Helper()
	for _, row := range rows {
		scenario.Await(t, 20*time.Second, fmt.Sprintf("row %d to be published", row.ID), func() (bool, string) {
			return marked(t, stage, row), "it is pending"
		})
	}
}

// marked reports whether the row is marked as published.
func marked(t *testing.T, stage *scenario.Stage, row scenario.Row) bool {
	t.Helper()
	return scenario.One[bool](t, stage.Database, `SELECT published_at IS NOT NULL FROM `+stage.Table+` WHERE id = $1`, row.ID)
}

// unmarked fails the test when one of the rows is marked as published.
func unmarked(t *testing.T, stage *scenario.Stage, rows ...scenario.Row) {
	t.Helper()
	for _, row := range rows {
		if marked(t, stage, row) {
			t.Errorf("row %d (key %q) of topic %s is marked as published", row.ID, row.Key, row.Topic)
		}
	}
}

// insert commits rows of one key.
func insert(stage *scenario.Stage, topic, key string, payloads ...string) (rows []scenario.Row) {
	for _, payload := range payloads {
		rows = append(rows, stage.Insert(topic, &key, payload))
	}
	return rows
}

// lines are those of a log that hold all words.
func lines(log string, words ...string) (found []string) {
next:
	for line := range strings.Lines(log) {
		for _, word := range words {
			if !strings.Contains(line, word) {
				continue next
			}
		}
		found = append(found, line)
	}
	return found
}

// logs waits until the relay's log has a line with all words.
func logs(t *testing.T, relay *scenario.Relay, words ...string) {
	t.Helper()
	scenario.Await(t, 20*time.Second, fmt.Sprintf("a line of the log with %q", words), func() (bool, string) {
		return len(lines(relay.Log(), words...)) > 0, relay.Log()
	})
}

func rabbitURL() string { return servers.FromEnvironment().RabbitMQURL }
