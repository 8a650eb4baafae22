package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// poison is a row that its broker cannot take, ever or for now: what it changes
// of a good one.
type poison struct {
	name                    string
	topic, typ, contentType string
	payload                 []byte
	headers                 map[string]string
	// createdAt is a time for PostgreSQL.
	createdAt string
	// reason is the one in the log; empty where the row is odd and yet arrives.
	reason string
	// noKey: the row alone waits.
	noKey bool
}

// oddHeaders are what JSON and PostgreSQL can hold: no NUL, and valid UTF-8.
var oddHeaders = map[string]string{"": "no name", "control\x01\r\n\t": "\x02\r\n", "\U0010ffff": "\ufffe\u2028"}

func kafkaPoisons() []poison {
	large := []byte(strings.Repeat("x", 5000))
	return []poison{
		{name: "oversize", payload: large, reason: "message_too_large"},
		{name: "oversize without key", payload: large, reason: "message_too_large", noKey: true},
		{name: "headers too large", headers: map[string]string{"large": string(large)}, reason: "message_too_large"},
		{name: "illegal topic", topic: "no/slashes please", reason: "invalid_destination"},
		{name: "illegal topic without key", topic: "..", reason: "invalid_destination", noKey: true},
		{name: "long topic", topic: strings.Repeat("t", 250), reason: "invalid_destination"},
		{name: "topic of odd bytes", topic: "a\x01\n\u2028b", reason: "invalid_destination"},
		{name: "odd headers", headers: oddHeaders},
		{name: "odd type", typ: "\x01\r\n", contentType: "\x01\u2028"},
		{name: "long ago", createdAt: "4713-01-01 00:00:00+00 BC"},
		{name: "far ahead", createdAt: "294276-12-31 23:59:59+00"},
		{name: "always", createdAt: "-infinity"},
		{name: "never", createdAt: "infinity"},
	}
}

func rabbitPoisons() []poison {
	long := strings.Repeat("ü", 128) // 256 bytes
	large := []byte(strings.Repeat("x", 5000))
	return []poison{
		{name: "oversize", payload: large, reason: "message_too_large"},
		{name: "oversize without key", payload: large, reason: "message_too_large", noKey: true},
		{name: "headers too large", headers: map[string]string{"large": strings.Repeat("x", 131_072)}, reason: "headers_too_large"},
		{name: "many headers", headers: manyHeaders(10_000), reason: "headers_too_large"},
		{name: "long header name", headers: map[string]string{long: "v"}, reason: "too_long"},
		{name: "header CC", headers: map[string]string{"CC": "elsewhere"}, reason: "invalid"},
		{name: "long routing key", topic: long, reason: "too_long"},
		{name: "long routing key without key", topic: long, reason: "too_long", noKey: true},
		{name: "unroutable", topic: "nowhere\x01\n\u2028", reason: "unroutable"},
		{name: "unroutable without key", topic: "nowhere", reason: "unroutable", noKey: true},
		{name: "long type", typ: long, reason: "too_long"},
		{name: "long content type", contentType: long, reason: "too_long"},
		{name: "odd headers", headers: oddHeaders},
		{name: "odd type", typ: "\x01\r\n", contentType: "\x01\u2028"},
		{name: "long ago", createdAt: "4713-01-01 00:00:00+00 BC"},
		{name: "far ahead", createdAt: "294276-12-31 23:59:59+00"},
		{name: "always", createdAt: "-infinity"},
		{name: "never", createdAt: "infinity"},
	}
}

func manyHeaders(n int) map[string]string {
	headers := map[string]string{}
	for i := range n {
		headers[fmt.Sprint("header-", i)] = "value"
	}
	return headers
}

// insertPoison commits the row.
func insertPoison(t *testing.T, stage *scenario.Stage, p poison, key string) scenario.Row {
	t.Helper()
	row := scenario.Row{Topic: stage.Topic(), Key: key, Keyed: !p.noKey}
	if p.topic != "" {
		row.Topic = p.topic
	}
	if p.payload == nil {
		p.payload = []byte("{}")
	}
	if p.contentType == "" {
		p.contentType = "application/json"
	}
	if p.headers == nil {
		p.headers = map[string]string{}
	}
	var keyed *string
	if row.Keyed {
		keyed = &key
	}
	try(t, stage.Database.Pool.QueryRow(t.Context(), `
WITH o AS (INSERT INTO `+stage.Table+` (topic, key, type, payload, content_type, headers, created_at) VALUES ($1, $2, $3, $4, $5, $6, coalesce(nullif($8, '')::timestamptz, now())) RETURNING id, message_id, topic, key),
     w AS (INSERT INTO truth (message_id, id, topic, key, digest) SELECT message_id, id, topic, key, $7 FROM o)
SELECT id, message_id FROM o`, row.Topic, keyed, p.typ, p.payload, p.contentType, p.headers, scenario.Digest(p.payload), p.createdAt).
		Scan(&row.ID, (*[16]byte)(&row.MessageID)))
	return row
}

// poisoned has all of the poisons in the same batches as good rows of other keys,
// and good rows behind each of them in its key. A poison costs its own key and
// nothing else, and the key goes on when it is gone.
func poisoned(t *testing.T, stage *scenario.Stage, poisons []poison) {
	t.Helper()
	type victim struct {
		poison
		row           scenario.Row
		before, after []scenario.Row
	}
	var victims []*victim
	var good []scenario.Row
	for i, p := range poisons {
		v := &victim{poison: p}
		key := fmt.Sprintf("poisoned-%d", i)
		topic := stage.Topic()
		if p.topic != "" {
			topic = p.topic
		}
		if !p.noKey && p.topic == "" {
			v.before = insert(stage, topic, key, "before")
		}
		v.row = insertPoison(t, stage, p, key)
		if !p.noKey && p.topic == "" {
			v.after = insert(stage, topic, key, "after", "after that")
		}
		victims = append(victims, v)
		good = append(good, insert(stage, stage.Topic(), fmt.Sprintf("good-%d", i%3), "in the same batch")...)
	}
	relay := stage.Start()
	published(t, stage, good...)
	for _, v := range victims {
		published(t, stage, v.before...)
		if v.reason == "" {
			published(t, stage, append(v.after, v.row)...)
			continue
		}
		logs(t, relay, fmt.Sprintf(" id=%d ", v.row.ID), "reason="+v.reason)
		unmarked(t, stage, append(v.after, v.row)...)
	}
	if n := len(lines(relay.Log(), "sink is away")); n > 0 {
		t.Errorf("the sink counts as away because of poison:\n%s", strings.Join(lines(relay.Log(), "sink is away"), ""))
	}
	// While they wait, others flow on.
	published(t, stage, insert(stage, stage.Topic(), "good-0", "later")...)

	for _, v := range victims {
		if v.reason == "" {
			continue
		}
		stage.Database.Exec(t, `DELETE FROM `+stage.Table+` WHERE id = $1 AND published_at IS NULL`, v.row.ID)
		stage.Database.Exec(t, `DELETE FROM truth WHERE id = $1`, v.row.ID)
		stage.Undo(v.row.MessageID, "it was cancelled: "+v.name)
	}
	for _, v := range victims {
		published(t, stage, v.after...)
	}
	stage.Drain(60 * time.Second)
	relay.Stop()
}

func TestKafkaPoison(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, together(quickRetries, scenario.Settings{"sinks.main.kafka.max_message_bytes": 3000}))
	poisoned(t, stage, kafkaPoisons())
	stage.Verify(0)
}

func TestRabbitMQPoison(t *testing.T) {
	for _, order := range scenario.Lanes(t, rabbitOrders...) {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			broker, err := servers.StartRabbitMQ(t.Context(), servers.RabbitMQOptions{Config: []string{"max_message_size = 4000"}})
			try(t, err)
			servers.CleanUp(t, broker)
			log := scenario.NewRabbitQueue(t, broker.URL("/"), nil)
			stage := scenario.NewStage(t, scenario.NewDatabase(t), log, together(quickRetries, scenario.Settings{"sinks.main.rabbitmq.order": order}))
			poisoned(t, stage, rabbitPoisons())
			// An oversize message closes the channel, and with it go the confirms of
			// what was in flight; that happens once, since the sink then knows.
			stage.Verify(stage.Config.InFlight())
		})
	}
}
