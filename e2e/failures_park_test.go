package e2e_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// limitMessages sets the largest batch that a topic takes.
func limitMessages(t *testing.T, topic, bytes string) {
	t.Helper()
	transport := &kafkago.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client := &kafkago.Client{Addr: kafkago.TCP(kafkaBrokers()...), Timeout: 10 * time.Second, Transport: transport}
	response, err := client.IncrementalAlterConfigs(t.Context(), &kafkago.IncrementalAlterConfigsRequest{
		Resources: []kafkago.IncrementalAlterConfigsRequestResource{{
			ResourceType: kafkago.ResourceTypeTopic, ResourceName: topic,
			Configs: []kafkago.IncrementalAlterConfigsRequestConfig{{Name: "max.message.bytes", Value: bytes, ConfigOperation: kafkago.ConfigOperationSet}},
		}},
	})
	if err == nil {
		err = response.Resources[0].Error
	}
	try(t, err)
}

// poisonable is a stage with a topic that takes no message beyond 3,000 bytes.
func poisonable(t *testing.T, settings scenario.Settings) (stage *scenario.Stage, topic string) {
	t.Helper()
	topic = name("orders")
	createKafkaTopic(t, topic, kafkago.ConfigEntry{ConfigName: "max.message.bytes", ConfigValue: "3000"})
	return scenario.NewKafkaStage(t, together(quickRetries, settings)), topic
}

// tooLarge is too large for the topic of a poisonable stage.
var tooLarge = strings.Repeat("x", 5000)

// awaitParked waits until so many entries are parked.
func awaitParkedKeys(t *testing.T, stage *scenario.Stage, n int) {
	t.Helper()
	scenario.Await(t, 60*time.Second, fmt.Sprintf("%d parked entries", n), func() (bool, string) {
		got := scenario.One[int](t, stage.Database, `SELECT count(*) FROM outbox_parked WHERE state = 'parked'`)
		return got == n, fmt.Sprint(got)
	})
}

func entriesLeft(t *testing.T, stage *scenario.Stage) int {
	t.Helper()
	return scenario.One[int](t, stage.Database, `SELECT count(*) FROM outbox_parked`)
}

func rowIDs(rows ...scenario.Row) (ids []int64) {
	for _, row := range rows {
		ids = append(ids, row.ID)
	}
	return ids
}

// A poison message holds back its key and no other, for every relay and after a
// restart, and recovers by itself when the topic takes it.
func TestPoisonMessageParksItsKeyForEveryRelay(t *testing.T) {
	t.Parallel()
	stage, topic := poisonable(t, nil)
	a, b := insert(stage, topic, "a", "1", tooLarge, "3"), insert(stage, topic, "b", "1")
	first := stage.Start()
	published(t, stage, a[0], b[0])
	awaitParkedKeys(t, stage, 1)
	logs(t, first, "a message is parked", fmt.Sprintf("id=%d", a[1].ID), "topic="+topic, "reason=message_too_large", "attempts=1")
	logs(t, first, "a parked message was refused again", "attempts=4")

	second := stage.Start() // beside the first one, and then alone
	a = append(a, insert(stage, topic, "a", "4")...)
	b = append(b, insert(stage, topic, "b", "2")...)
	published(t, stage, b...)
	first.Kill()
	a = append(a, insert(stage, topic, "a", "5")...)
	b = append(b, insert(stage, topic, "b", "3")...)
	published(t, stage, b...)
	third := stage.Start()
	published(t, stage, insert(stage, topic, "c", "1")...)
	unmarked(t, stage, a[1:]...)

	limitMessages(t, topic, "100000")
	published(t, stage, a...)
	scenario.Await(t, 20*time.Second, "the entry to go", func() (bool, string) { return entriesLeft(t, stage) == 0, "" })
	a = append(a, insert(stage, topic, "a", "6")...)
	published(t, stage, a...)
	second.Stop()
	third.Stop()
	got := sequencesOf(readKafkaRecords(t, kafkaBrokers(), topic, 3))
	if want := rowIDs(a...); !slices.Equal(slices.Compact(got["a"]), want) {
		t.Errorf("key a: %v, want %v", got["a"], want)
	}
}

func TestPoisonMessageWithoutKeyParksAlone(t *testing.T) {
	t.Parallel()
	stage, topic := poisonable(t, nil)
	rows := []scenario.Row{stage.Insert(topic, nil, "1"), stage.Insert(topic, nil, tooLarge), stage.Insert(topic, nil, "3")}
	relay := stage.Start()
	published(t, stage, rows[0], rows[2])
	awaitParkedKeys(t, stage, 1)
	published(t, stage, stage.Insert(topic, nil, "4"))
	unmarked(t, stage, rows[1])
	limitMessages(t, topic, "100000")
	published(t, stage, rows[1])
	scenario.Await(t, 20*time.Second, "the entry to go", func() (bool, string) { return entriesLeft(t, stage) == 0, "" })
	relay.Stop()
}

func TestPoisonMessageHoldsBackATotalOrder(t *testing.T) {
	t.Parallel()
	stage, topic := poisonable(t, scenario.Settings{"outbox.ordering": "total"})
	rows := insert(stage, topic, "a", "1", tooLarge, "3")
	one, two := stage.Start(), stage.Start()
	published(t, stage, rows[0])
	awaitParkedKeys(t, stage, 1)
	rows = slices.Concat(rows, insert(stage, topic, "b", "1"), insert(stage, topic, "c", "1"))
	scenario.Await(t, 30*time.Second, "some retries", func() (bool, string) {
		n := scenario.One[int](t, stage.Database, `SELECT max(attempts) FROM outbox_parked`)
		return n >= 4, fmt.Sprint(n)
	})
	unmarked(t, stage, rows[1:]...)
	limitMessages(t, topic, "100000")
	published(t, stage, rows...)
	one.Stop()
	two.Stop()
}

// Five thousand parked keys with rows behind them, and what others get through
// meanwhile. The ratio is printed, and depends on the machine.
func TestManyParkedKeysDoNotSlowTheOthers(t *testing.T) {
	stage, topic := poisonable(t, scenario.Settings{"log.level": "info"})
	load := func(what string) time.Duration {
		stage.Database.Exec(t, `INSERT INTO `+stage.Table+` (topic, key, payload) SELECT $1, 'flows-' || i % 500, convert_to(repeat('x', 200), 'UTF8') FROM generate_series(1, 20000) i`, topic)
		began := time.Now()
		scenario.Await(t, 120*time.Second, "the rows to be published", func() (bool, string) {
			left := scenario.One[int](t, stage.Database, `SELECT count(*) FROM `+stage.Table+` WHERE published_at IS NULL AND key LIKE 'flows-%'`)
			return left == 0, fmt.Sprint(left)
		})
		took := time.Since(began)
		t.Logf("20,000 rows %s: %s", what, took.Round(time.Millisecond))
		return took
	}
	relay := stage.Start()
	load("to warm up")
	without := load("with nothing parked")
	stage.Database.Exec(t, `WITH heads AS (
			INSERT INTO `+stage.Table+` (topic, key, payload) SELECT $1, 'parked-' || i, convert_to(repeat('x', 5000), 'UTF8') FROM generate_series(1, 5000) i
			RETURNING id, message_id, topic, key)
		INSERT INTO outbox_parked (id, message_id, topic, key, state, attempts, reason, error, parked_at, next_retry_at)
		SELECT id, message_id, topic, key, 'parked', 1, 'message_too_large', 'too large', now(), now() + interval '1 hour' FROM heads`, topic)
	stage.Database.Exec(t, `INSERT INTO `+stage.Table+` (topic, key) SELECT $1, 'parked-' || 1 + i % 5000 FROM generate_series(1, 25000) i`, topic)
	first := load("with 5,000 keys parked and 25,000 rows behind them, at first")
	then := load("the same, later")
	t.Logf("throughput beside 5,000 parked keys: %.2f of that without at first, %.2f later", without.Seconds()/first.Seconds(), without.Seconds()/then.Seconds())
	if n := scenario.One[int](t, stage.Database, `SELECT count(*) FROM `+stage.Table+` WHERE published_at IS NOT NULL AND key LIKE 'parked-%'`); n > 0 {
		t.Errorf("%d rows of parked keys were published", n)
	}
	// All of them at once are due, and go on.
	limitMessages(t, topic, "1000000")
	stage.Database.Exec(t, `UPDATE outbox_parked SET next_retry_at = now()`)
	stage.Drain(180 * time.Second)
	scenario.Await(t, 60*time.Second, "the entries to go", func() (bool, string) { n := entriesLeft(t, stage); return n == 0, fmt.Sprint(n) })
	relay.Stop()
	for key, sequences := range sequencesOf(readKafkaRecords(t, kafkaBrokers(), topic, 3)) {
		if !slices.IsSorted(sequences) {
			t.Errorf("key %s: %v", key, sequences)
		}
	}
}
