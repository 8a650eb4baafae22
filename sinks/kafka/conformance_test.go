package kafka

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/sinktest"
)

// brokers returns the addresses of the Kafka that tests share, or skips.
func brokers(t testing.TB) []string {
	t.Helper()
	value := os.Getenv("RELAY_TEST_KAFKA_BROKERS")
	if value == "" {
		t.Skip("needs RELAY_TEST_KAFKA_BROKERS; `make test` provides it")
	}
	return strings.Split(value, ",")
}

func testConfig(t testing.TB) Config {
	t.Helper()
	config := Defaults()
	config.Brokers = brokers(t)
	return config
}

func open(t testing.TB, config Config) *Publisher {
	t.Helper()
	publisher, err := New(config, sinks.Envelope{Style: sinks.StylePlain}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := publisher.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return publisher
}

func randomName(prefix string) string {
	var random [6]byte
	_, _ = rand.Read(random[:])
	return prefix + "-" + hex.EncodeToString(random[:])
}

// newTopic creates a topic that the test's end deletes. It leaves no connection
// behind.
func newTopic(t testing.TB, partitions int, configs ...kafkago.ConfigEntry) string {
	t.Helper()
	name := randomName("sink")
	createTopic(t, name, partitions, configs...)
	t.Cleanup(func() { deleteTopic(t, name) })
	return name
}

func createTopic(t testing.TB, name string, partitions int, configs ...kafkago.ConfigEntry) {
	t.Helper()
	client, done := admin(t)
	defer done()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		response, err := client.CreateTopics(t.Context(), &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{
			{Topic: name, NumPartitions: partitions, ReplicationFactor: 1, ConfigEntries: configs},
		}})
		if err == nil {
			err = response.Errors[name]
		}
		if err == nil || errors.Is(err, kafkago.TopicAlreadyExists) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("create topic %s: %v", name, err)
		}
	}
}

// setTopic changes one setting of a topic.
func setTopic(t testing.TB, topic, name, value string) {
	t.Helper()
	client, done := admin(t)
	defer done()
	response, err := client.IncrementalAlterConfigs(t.Context(), &kafkago.IncrementalAlterConfigsRequest{Resources: []kafkago.IncrementalAlterConfigsRequestResource{{
		ResourceType: kafkago.ResourceTypeTopic, ResourceName: topic,
		Configs: []kafkago.IncrementalAlterConfigsRequestConfig{{Name: name, Value: value, ConfigOperation: kafkago.ConfigOperationSet}},
	}}})
	if err != nil || response.Resources[0].Error != nil {
		t.Fatalf("%s=%s of topic %s: %v, %+v", name, value, topic, err, response)
	}
}

// eventually polls until the condition holds.
func eventually(t testing.TB, patience time.Duration, otherwise string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(otherwise)
		}
	}
}

func deleteTopic(t testing.TB, name string) {
	t.Helper()
	client, done := admin(t)
	defer done()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := client.DeleteTopics(ctx, &kafkago.DeleteTopicsRequest{Topics: []string{name}}); err != nil {
		t.Logf("delete topic %s: %v", name, err)
	}
}

func admin(t testing.TB) (client *kafkago.Client, done func()) {
	t.Helper()
	transport := &kafkago.Transport{MetadataTTL: time.Second}
	return &kafkago.Client{Addr: kafkago.TCP(brokers(t)...), Timeout: 30 * time.Second, Transport: transport}, transport.CloseIdleConnections
}

// record is a record with the partition that it was read from.
type record struct {
	partition  int
	offset     int64
	key, value []byte
	headers    map[string]string
}

// readTopic waits until the topic holds n records, and returns all.
func readTopic(t testing.TB, topic string, n int, timeout time.Duration) []record {
	t.Helper()
	client, done := admin(t)
	defer done()
	deadline := time.Now().Add(timeout)
	var all []record
	next := map[int]int64{}
	for {
		response, err := client.Metadata(t.Context(), &kafkago.MetadataRequest{Topics: []string{topic}})
		if err != nil || len(response.Topics) == 0 {
			t.Fatalf("metadata of %s: %v", topic, err)
		}
		behind := false
		for _, partition := range response.Topics[0].Partitions {
			fetched, err := client.Fetch(t.Context(), &kafkago.FetchRequest{
				Topic: topic, Partition: partition.ID, Offset: next[partition.ID], MinBytes: 1, MaxBytes: 8 << 20, MaxWait: 10 * time.Millisecond,
			})
			if err == nil {
				err = fetched.Error
			}
			if err != nil {
				if time.Now().After(deadline) {
					t.Fatalf("fetch from %s, partition %d: %v", topic, partition.ID, err)
				}
				behind = true // a new topic's leader may not know it yet
				continue
			}
			for {
				r, err := fetched.Records.ReadRecord()
				if err != nil {
					if !errors.Is(err, io.EOF) {
						t.Fatal(err)
					}
					break
				}
				if r.Offset < next[partition.ID] {
					continue // the head of a batch that was read before
				}
				next[partition.ID] = r.Offset + 1
				all = append(all, newRecord(t, partition.ID, r))
			}
			behind = behind || next[partition.ID] < fetched.HighWatermark
		}
		if !behind && (len(all) >= n || time.Now().After(deadline)) {
			if len(all) < n {
				t.Errorf("%d messages in %s after %s, want %d", len(all), topic, timeout, n)
			}
			return all
		}
	}
}

func newRecord(t testing.TB, partition int, r *protocol.Record) record {
	t.Helper()
	all := func(b protocol.Bytes) []byte {
		if b == nil {
			return nil
		}
		data, err := protocol.ReadAll(b)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	read := record{partition: partition, offset: r.Offset, key: all(r.Key), value: all(r.Value), headers: map[string]string{}}
	for _, h := range r.Headers {
		if _, twice := read.headers[h.Key]; twice {
			t.Errorf("header %s is there twice", h.Key)
		}
		read.headers[h.Key] = string(h.Value)
	}
	return read
}

// broker is what the conformance suite needs to know of Kafka.
type broker struct{ config Config }

func (b broker) Publisher(t *testing.T) sinks.Streamer {
	publisher, err := New(b.config, sinks.Envelope{Style: sinks.StylePlain}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return publisher
}

func (broker) NewDestination(t *testing.T) sinks.Destination {
	return sinks.Destination{Name: newTopic(t, 6)}
}

func (broker) MissingDestination(*testing.T) sinks.Destination {
	return sinks.Destination{Name: randomName("missing")}
}

func (b broker) Refuse(m *sinks.Message) { m.Payload = make([]byte, b.config.MaxMessageBytes) }

func (broker) Traits() sinktest.Traits { return sinktest.Traits{NullKey: true, NullPayload: true} }

func (broker) Read(t *testing.T, destination sinks.Destination, n int, timeout time.Duration) []sinktest.Received {
	var all []sinktest.Received
	for _, r := range readTopic(t, destination.Name, n, timeout) {
		sequence, err := strconv.ParseInt(r.headers["message-sequence"], 10, 64)
		if err != nil {
			t.Errorf("message-sequence: %v", err)
		}
		created, err := time.Parse(time.RFC3339Nano, r.headers["message-time"])
		if err != nil {
			t.Errorf("message-time: %v", err)
		}
		all = append(all, sinktest.Received{
			Partition: r.partition, Key: r.key, Payload: r.value, Sequence: sequence, CreatedAt: created, Headers: r.headers,
			MessageID: r.headers["message-id"], Type: r.headers["message-type"], ContentType: r.headers["content-type"],
		})
	}
	return all
}

func TestConformance(t *testing.T) {
	config := testConfig(t)
	sinktest.Run(t, broker{config})
}
