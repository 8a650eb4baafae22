package e2e_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/kafka"
)

// setKafkaTopic changes one setting of a topic on the shared Kafka.
func setKafkaTopic(t *testing.T, topic, name, value string) {
	t.Helper()
	transport := &kafkago.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafkago.Client{Addr: kafkago.TCP(kafkaBrokers()...), Timeout: 10 * time.Second, Transport: transport}
	response, err := client.IncrementalAlterConfigs(t.Context(), &kafkago.IncrementalAlterConfigsRequest{Resources: []kafkago.IncrementalAlterConfigsRequestResource{{
		ResourceType: kafkago.ResourceTypeTopic, ResourceName: topic,
		Configs: []kafkago.IncrementalAlterConfigsRequestConfig{{Name: name, Value: value, ConfigOperation: kafkago.ConfigOperationSet}},
	}}})
	if err == nil {
		err = response.Resources[0].Error
	}
	try(t, err)
}

// TestClocksApart has the broker refuse the relay's timestamps, as it does when
// the clocks are further apart than the topic allows: with every policy the rows
// wait, none is counted or deleted, and all go when the clocks are right.
func TestClocksApart(t *testing.T) {
	for _, policy := range []string{"park", "dead_letter", "skip"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			topic := name("clock")
			createKafkaTopic(t, topic)
			// No broker's clock needs to be wrong: a record that is a millisecond
			// old is too old.
			const setting = "message.timestamp.before.max.ms"
			setKafkaTopic(t, topic, setting, "0")
			stage := scenario.NewKafkaStage(t, together(quickRetries, scenario.Settings{"failures.policy": policy, "failures.max_attempts": 2}))
			const rows = 50
			var all []scenario.Row
			for n := range rows {
				// So large that no batch is checked within the millisecond of its making.
				all = append(all, insert(stage, topic, fmt.Sprintf("k-%d", n), strings.Repeat("x", 50_000))...)
			}
			relay := stage.Start()
			logs(t, relay, "reason=invalid_timestamp", "clock", "message.timestamp.after.max.ms")
			time.Sleep(3 * time.Second) // for many attempts
			if n := scenario.One[int](t, stage.Database, `SELECT count(*) FROM `+stage.Table); n != rows {
				t.Errorf("%d rows are left of %d", n, rows)
			}
			for _, table := range []string{"outbox_parked", "outbox_dead_letters"} {
				if n := scenario.One[int](t, stage.Database, `SELECT count(*) FROM `+table); n != 0 {
					t.Errorf("%s has %d rows", table, n)
				}
			}
			setKafkaTopic(t, topic, setting, "3600000")
			published(t, stage, all...)
			relay.Stop()
		})
	}
}

// TestBrokerThatAdvertisesAnotherAddress has a broker that is reached by the
// configured address and sends everybody who produces elsewhere.
func TestBrokerThatAdvertisesAnotherAddress(t *testing.T) {
	t.Parallel()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	try(t, err)
	wrong := nobody.Addr().String()
	try(t, nobody.Close())
	broker, err := servers.StartKafka(t.Context(), servers.KafkaOptions{Proxy: wrong})
	try(t, err)
	servers.CleanUp(t, broker)
	try(t, broker.CreateTopic(t.Context(), "orders", 3, nil))

	stage := scenario.NewKafkaStage(t, scenario.Settings{
		"sinks.main.kafka.brokers": []string{broker.ProxiedAddress()},
		"routes":                   []any{scenario.Config{"match": scenario.Config{"topic": "*"}, "sink": "main", "destination": "orders"}},
	})
	result := stage.Relay(nil).Command("check")
	for _, want := range []string{"destination orders of sink main: ", "broker 1 leads partition 0 and advertises " + wrong, "advertised.listeners", "connection refused"} {
		expect(t, result, 1, want)
	}

	config := kafka.Defaults()
	config.Brokers = []string{broker.ProxiedAddress()}
	publisher := kafkaPublisher(t, config, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	results := publisher.Publish(ctx, []sinks.Message{{Destination: "orders", Key: []byte("k")}})
	if results == nil || !strings.Contains(results[0].Error(), "broker 1 at "+wrong) {
		t.Errorf("producing says %v, want it to name %s", results, wrong)
	}

	config.Brokers = broker.Brokers()
	if err := kafkaPublisher(t, config, slog.New(slog.DiscardHandler)).Verify(t.Context(), sinks.Destination{Name: "orders"}); err != nil {
		t.Errorf("by the right listener: %v", err)
	}
}

// TestKeylessMessagesAvoidPartitionsWithoutLeader has one of three brokers gone,
// and with it a third of the partitions of a topic without replicas.
func TestKeylessMessagesAvoidPartitionsWithoutLeader(t *testing.T) {
	t.Parallel()
	cluster, err := servers.StartKafkaCluster(t.Context(), servers.KafkaClusterOptions{})
	try(t, err)
	servers.CleanUp(t, cluster)
	transport := &kafkago.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafkago.Client{Addr: kafkago.TCP(cluster.Brokers()...), Timeout: 10 * time.Second, Transport: transport}
	response, err := client.CreateTopics(t.Context(), &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{
		Topic: "orders", NumPartitions: -1, ReplicationFactor: -1,
		ReplicaAssignments: []kafkago.ReplicaAssignment{{Partition: 0, Replicas: []int{1}}, {Partition: 1, Replicas: []int{2}}, {Partition: 2, Replicas: []int{3}}},
		ConfigEntries:      []kafkago.ConfigEntry{{ConfigName: "min.insync.replicas", ConfigValue: "1"}},
	}}})
	if err == nil {
		err = response.Errors["orders"]
	}
	try(t, err)
	config := kafka.Defaults()
	config.Brokers = cluster.Brokers()
	publisher := kafkaPublisher(t, config, slog.New(slog.DiscardHandler))
	keyless := make([]sinks.Message, 300)
	for i := range keyless {
		keyless[i] = sinks.Message{Sequence: int64(i), Destination: "orders"}
	}
	publish := func() (failed int, took time.Duration, first error) {
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for _, err := range publisher.Publish(ctx, keyless) {
			if err != nil {
				failed++
				first = err
			}
		}
		return failed, time.Since(began), first
	}
	scenario.Await(t, 30*time.Second, "the new topic", func() (bool, string) {
		failed, _, first := publish()
		return failed == 0, fmt.Sprint(first)
	})
	try(t, cluster.Node(3).Stop())
	// The first calls find out. Then no call has failures, for as long as the
	// partition is without a leader.
	for range 2 {
		_, _, _ = publish()
	}
	for range 5 {
		if failed, took, first := publish(); failed > 0 {
			t.Errorf("%d of %d messages without key failed after %s: %v", failed, len(keyless), took, first)
		}
		time.Sleep(time.Second)
	}
}

// TestQuotaOfTheClient has the relay produce many times what its client id may:
// nothing fails, nothing is there twice, and a metric and one line of the log say
// why it is slow.
func TestQuotaOfTheClient(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, scenario.Settings{"outbox.batch_size": 100})
	id := name("client")
	transport := &kafkago.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafkago.Client{Addr: kafkago.TCP(kafkaBrokers()...), Timeout: 10 * time.Second, Transport: transport}
	_, err := client.AlterClientQuotas(t.Context(), &kafkago.AlterClientQuotasRequest{Entries: []kafkago.AlterClientQuotaEntry{{
		Entities: []kafkago.AlterClientQuotaEntity{{EntityType: "client-id", EntityName: id}},
		Ops:      []kafkago.AlterClientQuotaOps{{Key: "producer_byte_rate", Value: 500_000}},
	}}})
	try(t, err)
	for n := range 2_000 { // 20 MB, of which the first seconds take a part at once
		insert(stage, stage.Topic(), fmt.Sprintf("k-%d", n%200), strings.Repeat("x", 10_000))
	}
	relay := stage.Relay(scenario.Settings{"sinks.main.kafka.client_id": id})
	relay.Start()
	scenario.Await(t, 2*time.Minute, "the rows to be published", func() (bool, string) {
		pending, err := stage.Pending()
		return err == nil && pending == 0, fmt.Sprint(pending, " pending, ", err)
	})
	page := relay.Page("/metrics")
	if seconds, ok := metric(t, relay, `outbox_relay_sink_throttled_seconds_total{sink="main"}`); !ok || seconds < 5 {
		t.Errorf("throttled for %v s, want more than 5:\n%s", seconds, strings.Join(lines(page, "throttled"), ""))
	}
	for _, line := range lines(page, "outbox_relay_publish_failures_total{") {
		if !strings.HasSuffix(strings.TrimSpace(line), " 0") {
			t.Errorf("something failed: %s", line)
		}
	}
	if found := lines(relay.Log(), "throttles this client", "quota"); len(found) != 1 {
		t.Errorf("%d lines about it, want 1: %q", len(found), found)
	}
	relay.Stop()
	stage.Verify(0)
}
