package e2e_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/outbox"
)

// shape is a row, and what a consumer must find of it.
type shape struct {
	name        string
	key         *string
	typ         string
	payload     []byte
	contentType string
	headers     map[string]string

	id        int64
	messageID outbox.UUID
}

func text(s string) *string { return &s }

// createdAt is that of all shapes.
var createdAt = time.Date(2026, 3, 1, 12, 0, 0, 250_000_000, time.UTC)

const createdAtText = "2026-03-01T12:00:00.25Z"

// shapes are the rows that consumers may meet.
func shapes() []*shape {
	large := make([]byte, 900_000)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(large)
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	many := map[string]string{}
	for i := range 100 {
		many[fmt.Sprintf("header-%03d", i)] = strings.Repeat("v", i)
	}
	return []*shape{
		{name: "ordinary", key: text("o-17"), typ: "OrderPlaced", payload: []byte(`{"id":"o-17"}`), headers: map[string]string{"tenant": "acme", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}},
		{name: "no key", typ: "OrderPlaced", payload: []byte("{}")},
		{name: "empty key", key: text(""), typ: "OrderPlaced", payload: []byte("{}")},
		{name: "no type", key: text("k"), payload: []byte("{}")},
		{name: "empty payload", key: text("k"), typ: "Emptied", payload: []byte{}},
		{name: "null payload", key: text("k"), typ: "Deleted"},
		{name: "neither key nor payload"},
		{name: "large", key: text("large"), typ: "Filmed", payload: large, contentType: "video/mp4"},
		{name: "UTF-8", key: text("Größe ☃ 你好 🙂"), typ: "Übertragen", payload: []byte(`{"name":"Zoë 🙂"}`), headers: map[string]string{"naïve": "ça va ☃", "empty": "", "quoted": `"a" \ 'b'` + "\n\t"}},
		{name: "every byte", key: text("k"), typ: "Measured", payload: every, contentType: "application/octet-stream"},
		{name: "100 headers", key: text("k"), typ: "Annotated", payload: []byte("{}"), headers: many},
	}
}

// insertShape commits the row.
func insertShape(t *testing.T, stage *scenario.Stage, topic string, s *shape) {
	t.Helper()
	if s.contentType == "" {
		s.contentType = "application/json"
	}
	if s.headers == nil {
		s.headers = map[string]string{}
	}
	err := stage.Database.Pool.QueryRow(t.Context(), `INSERT INTO `+stage.Table+` (topic, key, type, payload, content_type, headers, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id, message_id`, topic, s.key, s.typ, s.payload, s.contentType, s.headers, createdAt).
		Scan(&s.id, (*[16]byte)(&s.messageID))
	try(t, err)
}

// style is one value of headers: the names of the id, and what stands in a
// message's headers on each broker.
type style struct {
	idHeader string
	kafka    func(s *shape, topic string) map[string]string
	rabbit   func(s *shape, topic string) map[string]any
}

var styles = map[string]style{
	"plain": {
		idHeader: "message-id",
		kafka: func(s *shape, _ string) map[string]string {
			return map[string]string{
				"message-id": s.messageID.String(), "message-type": s.typ, "message-sequence": fmt.Sprint(s.id),
				"message-time": createdAtText, "content-type": s.contentType,
			}
		},
		rabbit: func(s *shape, _ string) map[string]any { return map[string]any{"message-sequence": s.id} },
	},
	"cloudevents": {
		idHeader: "ce_id",
		kafka: func(s *shape, topic string) map[string]string {
			attributes := map[string]string{"content-type": s.contentType}
			for name, value := range cloudEvent(s, topic) {
				attributes["ce_"+name] = value
			}
			return attributes
		},
		rabbit: func(s *shape, topic string) map[string]any {
			attributes := map[string]any{}
			for name, value := range cloudEvent(s, topic) {
				attributes["cloudEvents_"+name] = value
			}
			return attributes
		},
	},
	"debezium": {
		idHeader: "id",
		kafka: func(s *shape, _ string) map[string]string {
			return map[string]string{"id": s.messageID.String(), "eventType": s.typ}
		},
		rabbit: func(s *shape, _ string) map[string]any {
			return map[string]any{"id": s.messageID.String(), "eventType": s.typ}
		},
	},
}

func cloudEvent(s *shape, topic string) map[string]string {
	attributes := map[string]string{
		"specversion": "1.0", "id": s.messageID.String(), "source": "/shop", "time": createdAtText, "type": s.typ,
	}
	if s.typ == "" {
		attributes["type"] = topic // CloudEvents wants one
	}
	if s.key != nil {
		attributes["subject"] = *s.key
	}
	return attributes
}

func TestWhatConsumersGet(t *testing.T) {
	for name, style := range styles {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stage, both := newBothStage(t, scenario.NewKafkaLog(t), scenario.Settings{"headers": name, "source": "/shop"})
			toKafka, toRabbit := shapes(), shapes()
			for i := range toKafka {
				insertShape(t, stage, both.order(), toKafka[i])
				insertShape(t, stage, both.mail(), toRabbit[i])
			}
			relay := stage.Start()
			stage.Drain(30 * time.Second)
			relay.Stop()

			records, err := both.KafkaLog.Records(t.Context())
			try(t, err)
			byID := map[string]scenario.Record{}
			for _, record := range records {
				byID[record.Headers[style.idHeader]] = record
			}
			if len(records) != len(toKafka) {
				t.Errorf("%d records in Kafka, want %d", len(records), len(toKafka))
			}
			for _, s := range toKafka {
				t.Run(s.name+" in Kafka", func(t *testing.T) {
					record, ok := byID[s.messageID.String()]
					if !ok {
						t.Fatalf("no record has %s %s", style.idHeader, s.messageID)
					}
					s.checkRecord(t, record, style.kafka(s, both.order()))
				})
			}

			deliveries := take(t, channelTo(t, rabbitURL()), both.mail())
			if len(deliveries) != len(toRabbit) {
				t.Errorf("%d messages in RabbitMQ, want %d", len(deliveries), len(toRabbit))
			}
			byMessage := map[string]amqp.Delivery{}
			for _, delivery := range deliveries {
				byMessage[delivery.MessageId] = delivery
			}
			for _, s := range toRabbit {
				t.Run(s.name+" in RabbitMQ", func(t *testing.T) {
					delivery, ok := byMessage[s.messageID.String()]
					if !ok {
						t.Fatalf("no message has the message_id %s", s.messageID)
					}
					s.checkDelivery(t, delivery, style.rabbit(s, both.mail()))
				})
			}
		})
	}
}

// same fails the test when a consumer gets something else.
func same[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: got %.200q, want %.200q", what, fmt.Sprint(got), fmt.Sprint(want))
	}
}

func (s *shape) checkRecord(t *testing.T, record scenario.Record, attributes map[string]string) {
	t.Helper()
	same(t, "key is there", record.Keyed, s.key != nil)
	if s.key != nil {
		same(t, "key", record.Key, *s.key)
	}
	same(t, "value is null", record.Payload == nil, s.payload == nil)
	if !bytes.Equal(record.Payload, s.payload) {
		t.Errorf("value: got %d bytes, want %d: %.80q", len(record.Payload), len(s.payload), record.Payload)
	}
	maps.Copy(attributes, s.headers)
	same(t, "headers", record.Headers, attributes)
}

func (s *shape) checkDelivery(t *testing.T, delivery amqp.Delivery, attributes map[string]any) {
	t.Helper()
	if !bytes.Equal(delivery.Body, s.payload) {
		t.Errorf("body: got %d bytes, want %d: %.80q", len(delivery.Body), len(s.payload), delivery.Body)
	}
	same(t, "type", delivery.Type, s.typ)
	same(t, "content_type", delivery.ContentType, s.contentType)
	same(t, "timestamp", delivery.Timestamp.Unix(), createdAt.Unix())
	same(t, "delivery_mode", delivery.DeliveryMode, amqp.Persistent)
	if s.key != nil {
		attributes["message-key"] = *s.key
	}
	for name, value := range s.headers {
		attributes[name] = value
	}
	same(t, "headers", map[string]any(delivery.Headers), attributes)
}

// The hashes are of Kafka's own tests of its murmur2.
func TestPartitionsAreThoseOfTheJavaProducer(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, nil)
	hashes := map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	}
	for key := range hashes {
		insert(stage, stage.Topic(), key, "1", "2")
	}
	for range 200 { // they change partitions after some at a time
		stage.Insert(stage.Topic(), nil, "no key")
	}
	relay := stage.Start()
	stage.Drain(20 * time.Second)
	relay.Stop()
	spread := map[int]int{}
	for _, record := range stage.Records() {
		if !record.Keyed {
			spread[record.Partition]++
			continue
		}
		if want := int(hashes[record.Key]&0x7fffffff) % 6; record.Partition != want {
			t.Errorf("key %q is in partition %d, want %d", record.Key, record.Partition, want)
		}
	}
	if len(spread) < 2 {
		t.Errorf("records without a key are in partitions %v only", spread)
	}
	stage.Verify(0)
}

func TestCompression(t *testing.T) {
	for _, codec := range []string{"gzip", "snappy", "lz4", "zstd"} {
		t.Run(codec, func(t *testing.T) {
			t.Parallel()
			stage := scenario.NewKafkaStage(t, scenario.Settings{"sinks.main.kafka.compression": codec})
			for i := range 20 {
				insert(stage, stage.Topic(), fmt.Sprint("k", i%3), strings.Repeat(fmt.Sprint("compress me ", i), 500), "", "x")
			}
			relay := stage.Start()
			stage.Drain(20 * time.Second)
			relay.Stop()
			stage.Verify(0)
		})
	}
}

func TestRoutesWithGlobsAndTemplates(t *testing.T) {
	t.Parallel()
	prefix, exchange := name("routed"), name("exchange")
	for _, topic := range []string{"-Placed", "-Paid", "-rest"} {
		createKafkaTopic(t, prefix+topic)
	}
	channel := channelTo(t, rabbitURL())
	queue, err := channel.QueueDeclare(name("routed"), true, false, false, false, nil)
	try(t, err)
	try(t, channel.ExchangeDeclare(exchange, "topic", false, false, false, false, nil))
	defer func() {
		_, _ = channel.QueueDelete(queue.Name, false, false, false)
		_ = channel.ExchangeDelete(exchange, false, false)
	}()
	try(t, channel.QueueBind(queue.Name, "shop.#", exchange, false, nil))
	stage, _ := newBothStage(t, scenario.NewKafkaLog(t), scenario.Settings{"routes": []any{
		scenario.Config{"match": scenario.Config{"topic": "shop.[ab]*", "type": "Mail*"}, "sink": "mail", "destination": "{topic}.{key}", "exchange": exchange},
		scenario.Config{"match": scenario.Config{"topic": "shop.?*"}, "sink": "main", "destination": prefix + "-{type}"},
		scenario.Config{"match": scenario.Config{"topic": "*"}, "sink": "main", "destination": prefix + "-rest"},
	}})
	insertTyped := func(topic, key, typ string) (id int64) {
		return scenario.One[int64](t, stage.Database, `INSERT INTO `+stage.Table+` (topic, key, type) VALUES ($1, $2, $3) RETURNING id`, topic, key, typ)
	}
	mails := []int64{insertTyped("shop.accounts", "k1", "MailSent"), insertTyped("shop.billing", "k1", "MailBounced")}
	placed := []int64{insertTyped("shop.accounts", "k2", "Placed"), insertTyped("shop.orders", "k2", "Placed")}
	paid := []int64{insertTyped("shop.billing", "k3", "Paid")}
	rest := []int64{insertTyped("shop.", "k4", "MailSent"), insertTyped("warehouse", "k4", "")}
	relay := stage.Start()
	stage.Drain(20 * time.Second)
	relay.Stop()
	for topic, want := range map[string]map[string][]int64{"-Placed": {"k2": placed}, "-Paid": {"k3": paid}, "-rest": {"k4": rest}} {
		same(t, topic, sequencesOf(readKafkaRecords(t, kafkaBrokers(), prefix+topic, 3)), want)
	}
	deliveries := take(t, channel, queue.Name)
	same(t, "mails", sequencesIn(deliveries), map[string][]int64{"k1": mails})
	keys := map[string]bool{}
	for _, delivery := range deliveries {
		keys[delivery.RoutingKey] = true
	}
	same(t, "routing keys", keys, map[string]bool{"shop.accounts.k1": true, "shop.billing.k1": true})
}
