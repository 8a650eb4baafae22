package e2e_test

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/kafka"
)

// TestKafkaSinkOutlivesBroker publishes without a pause while the broker is
// killed, stopped and frozen: what fails is sent again, as the relay does, and
// in the end all is there, in order, and hardly anything twice.
func TestKafkaSinkOutlivesBroker(t *testing.T) {
	broker, err := servers.StartKafka(t.Context(), servers.KafkaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, broker)
	if err := broker.CreateTopic(t.Context(), "orders", 3, nil); err != nil {
		t.Fatal(err)
	}
	config := kafka.Defaults()
	config.Brokers = broker.Brokers()
	publisher, err := kafka.New(config, sinks.Envelope{}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer publisher.Close()

	var (
		stop          atomic.Bool
		acknowledged  atomic.Int64
		failedCalls   atomic.Int64
		all           sync.WaitGroup
		sent          [4]int64
		permanentOnce sync.Once
	)
	for caller := range sent {
		all.Go(func() {
			for sequence := int64(0); !stop.Load(); {
				var pending []sinks.Message
				for n := range int64(50) {
					pending = append(pending, sinks.Message{
						Sequence: sequence + n, Destination: "orders", Payload: []byte("{}"),
						Key: fmt.Appendf(nil, "%d-%d", caller, n%7),
					})
				}
				for len(pending) > 0 {
					ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
					results := publisher.Publish(ctx, pending)
					cancel()
					var failed []sinks.Message
					for i, err := range results {
						if err == nil {
							continue
						}
						failed = append(failed, pending[i])
						if sinks.ScopeOf(err) != sinks.ScopeSink || sinks.IsPermanent(err) {
							permanentOnce.Do(func() { t.Errorf("scope %s, permanent %t: %v", sinks.ScopeOf(err), sinks.IsPermanent(err), err) })
						}
					}
					acknowledged.Add(int64(len(pending) - len(failed)))
					if len(failed) > 0 {
						failedCalls.Add(1)
						time.Sleep(50 * time.Millisecond) // the relay's backoff
					}
					pending = failed
				}
				sequence += 50
				sent[caller] = sequence
			}
		})
	}
	defer all.Wait()
	defer stop.Store(true)

	progress := func(what string) {
		t.Helper()
		before := acknowledged.Load()
		for deadline := time.Now().Add(60 * time.Second); acknowledged.Load() < before+1000; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: nothing is acknowledged any more", what)
			}
		}
	}
	ping := func(want bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			err := publisher.Ping(ctx)
			cancel()
			if (err == nil) == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("Ping: %v, want success: %t", err, want)
			}
		}
	}
	progress("at first")
	const faults = 3
	broker.Kill()
	ping(false)
	if err := broker.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ping(true)
	progress("after SIGKILL")

	if err := broker.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := broker.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	progress("after SIGTERM")

	if err := broker.Pause(); err != nil {
		t.Fatal(err)
	}
	ping(false)
	if err := broker.Resume(); err != nil {
		t.Fatal(err)
	}
	ping(true)
	progress("after SIGSTOP")

	stop.Store(true)
	all.Wait()

	total := int64(0)
	for _, n := range sent {
		total += n
	}
	records := readKafkaRecords(t, broker.Brokers(), "orders", 3)
	highest, seen := map[string]int64{}, map[string]bool{}
	for _, r := range records {
		name := fmt.Sprintf("%s/%d", r.key, r.sequence)
		if seen[name] {
			continue
		}
		seen[name] = true
		if before, ok := highest[r.key]; ok && r.sequence < before {
			t.Fatalf("key %s: %d came after %d", r.key, r.sequence, before)
		}
		highest[r.key] = r.sequence
	}
	if int64(len(seen)) != total {
		t.Errorf("%d different messages in the topic, want %d", len(seen), total)
	}
	duplicates := len(records) - len(seen)
	t.Logf("%d messages, %d faults, %d calls failed in part, %d duplicates", total, faults, failedCalls.Load(), duplicates)
	if most := faults * len(sent) * 50; duplicates > most {
		t.Errorf("%d duplicates, more than the %d that were in flight", duplicates, most)
	}
	if failedCalls.Load() == 0 {
		t.Error("no call failed: the test shows nothing")
	}
}

// TestKafkaSinkTouchesNothing publishes to a fresh broker, which must have the
// topic and nothing that the sink made.
func TestKafkaSinkTouchesNothing(t *testing.T) {
	broker, err := servers.StartKafka(t.Context(), servers.KafkaOptions{Properties: map[string]string{"auto.create.topics.enable": "true"}})
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, broker)
	if err := broker.CreateTopic(t.Context(), "orders", 1, nil); err != nil {
		t.Fatal(err)
	}
	config := kafka.Defaults()
	config.Brokers = broker.Brokers()
	publisher, err := kafka.New(config, sinks.Envelope{}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer publisher.Close()
	results := publisher.Publish(t.Context(), []sinks.Message{{Destination: "orders"}, {Destination: "missing"}})
	if results == nil || results[0] != nil || sinks.ScopeOf(results[1]) != sinks.ScopeDestination {
		t.Errorf("results %v", results)
	}
	if err := publisher.Verify(t.Context(), sinks.Destination{Name: "absent"}); err == nil {
		t.Error("Verify of a missing topic: no error")
	}
	client := &kafkago.Client{Addr: kafkago.TCP(broker.Brokers()...), Timeout: 10 * time.Second, Transport: &kafkago.Transport{}}
	metadata, err := client.Metadata(t.Context(), &kafkago.MetadataRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range metadata.Topics {
		if topic.Name != "orders" {
			t.Errorf("topic %s is there", topic.Name)
		}
	}
}

type kafkaRecord struct {
	key      string
	sequence int64
}

// readKafkaRecords returns all records of a topic that nobody writes to any
// more, each partition in its order.
func readKafkaRecords(t *testing.T, brokers []string, topic string, partitions int) []kafkaRecord {
	t.Helper()
	transport := &kafkago.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafkago.Client{Addr: kafkago.TCP(brokers...), Timeout: 10 * time.Second, Transport: transport}
	var all []kafkaRecord
	deadline := time.Now().Add(60 * time.Second)
	for partition := range partitions {
		for next := int64(0); ; {
			fetched, err := client.Fetch(t.Context(), &kafkago.FetchRequest{Topic: topic, Partition: partition, Offset: next, MinBytes: 1, MaxBytes: 8 << 20, MaxWait: 10 * time.Millisecond})
			if err == nil {
				err = fetched.Error
			}
			if err != nil {
				if time.Now().After(deadline) {
					t.Fatal(err)
				}
				continue
			}
			for {
				r, err := fetched.Records.ReadRecord()
				if err != nil {
					break
				}
				if r.Offset < next {
					continue
				}
				next = r.Offset + 1
				key, _ := protocol.ReadAll(r.Key)
				read := kafkaRecord{key: string(key), sequence: -1}
				for _, h := range r.Headers {
					if h.Key == "message-sequence" {
						if read.sequence, err = strconv.ParseInt(string(h.Value), 10, 64); err != nil {
							t.Fatal(err)
						}
					}
				}
				all = append(all, read)
			}
			if next >= fetched.HighWatermark {
				break
			}
		}
	}
	return all
}
