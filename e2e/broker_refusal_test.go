package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

func name(kind string) string { return fmt.Sprintf("%s-%08x", kind, rand.Uint32()) }

// createKafkaTopic makes a topic on the shared Kafka.
func createKafkaTopic(t *testing.T, topic string, settings ...kafkago.ConfigEntry) {
	t.Helper()
	transport := &kafkago.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client := &kafkago.Client{Addr: kafkago.TCP(kafkaBrokers()...), Timeout: 10 * time.Second, Transport: transport}
	response, err := client.CreateTopics(t.Context(), &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{
		{Topic: topic, NumPartitions: 3, ReplicationFactor: 1, ConfigEntries: settings},
	}})
	if err == nil {
		err = response.Errors[topic]
	}
	try(t, err)
	t.Cleanup(func() {
		_, _ = client.DeleteTopics(context.Background(), &kafkago.DeleteTopicsRequest{Topics: []string{topic}})
	})
}

// sequencesOf returns the ids of the records by key, in the broker's order.
func sequencesOf(records []kafkaRecord) map[string][]int64 {
	byKey := map[string][]int64{}
	for _, r := range records {
		byKey[r.key] = append(byKey[r.key], r.sequence)
	}
	return byKey
}

func TestKafkaTopicThatIsMissing(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, quickRetries)
	missing := name("created-later")
	relay := stage.Start()
	a := insert(stage, missing, "a", "1", "2", "3")
	b := insert(stage, missing, "b", "1", "2")
	there := insert(stage, stage.Topic(), "a", "1", "2")
	published(t, stage, there...)
	logs(t, relay, "a destination takes nothing", missing, "reason=unknown_topic")
	unmarked(t, stage, slices.Concat(a, b)...)
	published(t, stage, insert(stage, stage.Topic(), "c", "others flow on")...)
	expect(t, relay.Command("check"), 1, "error    destination "+missing+" of sink main: ")
	if n := len(lines(relay.Log(), missing)); n > 2 {
		t.Errorf("%d lines about one missing topic", n)
	}

	createKafkaTopic(t, missing)
	published(t, stage, slices.Concat(a, b)...)
	relay.Stop()
	got := sequencesOf(readKafkaRecords(t, kafkaBrokers(), missing, 3))
	if want := []int64{a[0].ID, a[1].ID, a[2].ID}; !slices.Equal(got["a"], want) {
		t.Errorf("key a: %v, want %v", got["a"], want)
	}
	if want := []int64{b[0].ID, b[1].ID}; !slices.Equal(got["b"], want) {
		t.Errorf("key b: %v, want %v", got["b"], want)
	}
}

func TestMessageThatIsTooLarge(t *testing.T) {
	for name, limit := range map[string]func(t *testing.T) (topic string, settings scenario.Settings){
		"for the relay": func(t *testing.T) (string, scenario.Settings) {
			topic := name("orders")
			createKafkaTopic(t, topic)
			return topic, scenario.Settings{"sinks.main.kafka.max_message_bytes": 3000}
		},
		"for the topic": func(t *testing.T) (string, scenario.Settings) {
			topic := name("orders")
			createKafkaTopic(t, topic, kafkago.ConfigEntry{ConfigName: "max.message.bytes", ConfigValue: "3000"})
			return topic, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic, settings := limit(t)
			stage := scenario.NewKafkaStage(t, together(quickRetries, settings))
			large := strings.Repeat("x", 5000)
			// Before the relay starts, so that all are in one batch.
			a := insert(stage, topic, "a", "1", large, "3")
			b := insert(stage, topic, "b", "1", "2")
			relay := stage.Start()
			published(t, stage, a[0], b[0], b[1])
			logs(t, relay, "a parked message was refused again", fmt.Sprintf("id=%d", a[1].ID), "message_too_large", "attempts=4")
			unmarked(t, stage, a[1], a[2])
			published(t, stage, insert(stage, topic, "b", "3")...)

			// An operator cancels it, and its key goes on.
			stage.Database.Exec(t, `DELETE FROM `+stage.Table+` WHERE id = $1`, a[1].ID)
			later := insert(stage, topic, "a", "4")
			published(t, stage, a[2], later[0])
			relay.Stop()
			got := sequencesOf(readKafkaRecords(t, kafkaBrokers(), topic, 3))
			if want := []int64{a[0].ID, a[2].ID, later[0].ID}; !slices.Equal(got["a"], want) {
				t.Errorf("key a: %v, want %v", got["a"], want)
			}
			if len(got["b"]) != 3 || !slices.IsSorted(got["b"]) {
				t.Errorf("key b: %v, want three in order", got["b"])
			}
		})
	}
}

// take empties a queue.
func take(t *testing.T, channel *amqp.Channel, queue string) (all []amqp.Delivery) {
	t.Helper()
	for {
		delivery, ok, err := channel.Get(queue, true)
		try(t, err)
		if !ok {
			return all
		}
		all = append(all, delivery)
	}
}

func sequencesIn(deliveries []amqp.Delivery) map[string][]int64 {
	byKey := map[string][]int64{}
	for _, d := range deliveries {
		key, _ := d.Headers["message-key"].(string)
		sequence, _ := d.Headers["message-sequence"].(int64)
		byKey[key] = append(byKey[key], sequence)
	}
	return byKey
}

func TestRabbitMQDestinationsThatAreMissing(t *testing.T) {
	url := servers.FromEnvironment().RabbitMQURL
	for _, test := range []struct {
		name, reason, logged string
		// create makes what is missing.
		create func(t *testing.T, channel *amqp.Channel, exchange, queue string)
	}{
		{"nothing is bound", "reason=unroutable", "a message is parked", func(t *testing.T, channel *amqp.Channel, exchange, queue string) {
			try(t, channel.QueueBind(queue, queue, exchange, false, nil))
		}},
		{"no exchange", "reason=", "a destination takes nothing", func(t *testing.T, channel *amqp.Channel, exchange, queue string) {
			try(t, channel.ExchangeDeclare(exchange, "direct", false, false, false, false, nil))
			try(t, channel.QueueBind(queue, queue, exchange, false, nil))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			exchange, topic := name("exchange"), name("topic")
			log := scenario.NewRabbitLog(t)
			stage := scenario.NewStage(t, scenario.NewDatabase(t), log, together(quickRetries, scenario.Settings{"routes": []any{
				scenario.Config{"match": scenario.Config{"topic": topic}, "sink": "main", "exchange": exchange},
				scenario.Config{"match": scenario.Config{"topic": "*"}, "sink": "main"},
			}}))
			channel := channelTo(t, url)
			_, err := channel.QueueDeclare(topic, true, false, false, false, nil)
			try(t, err)
			defer func() { _, _ = channel.QueueDelete(topic, false, false, false) }()
			defer func() { _ = channel.ExchangeDelete(exchange, false, false) }()
			if test.name != "no exchange" {
				try(t, channel.ExchangeDeclare(exchange, "direct", false, false, false, false, nil))
			}

			relay := stage.Start()
			a, b := insert(stage, topic, "a", "1", "2", "3"), insert(stage, topic, "b", "1")
			published(t, stage, insert(stage, stage.Topic(), "a", "1", "2")...)
			logs(t, relay, test.logged, exchange, test.reason)
			unmarked(t, stage, slices.Concat(a, b)...)
			published(t, stage, insert(stage, stage.Topic(), "c", "others flow on")...)
			if len(lines(relay.Log(), "sink is away")) > 0 {
				t.Error("the sink counts as away because one destination is missing")
			}

			test.create(t, channel, exchange, topic)
			published(t, stage, slices.Concat(a, b)...)
			relay.Stop()
			got := sequencesIn(take(t, channel, topic))
			if want := []int64{a[0].ID, a[1].ID, a[2].ID}; !slices.Equal(got["a"], want) {
				t.Errorf("key a: %v, want %v", got["a"], want)
			}
			if want := []int64{b[0].ID}; !slices.Equal(got["b"], want) {
				t.Errorf("key b: %v, want %v", got["b"], want)
			}
		})
	}
}
