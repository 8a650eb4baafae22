package kafka

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/sinks"
)

func publishable(topic string, sequence int64, key []byte) sinks.Message {
	m := testMessage(sequence, key, fmt.Appendf(nil, `{"n":%d}`, sequence))
	m.Destination = topic
	return m
}

func parseSequence(t *testing.T, r record) int64 {
	t.Helper()
	sequence, err := strconv.ParseInt(r.headers["message-sequence"], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return sequence
}

// wantSequences expects exactly the messages, each once, in order.
func wantSequences(t *testing.T, records []record, messages []sinks.Message) {
	t.Helper()
	var got, want []int64
	for _, r := range records {
		got = append(got, parseSequence(t, r))
	}
	for _, m := range messages {
		want = append(want, m.Sequence)
	}
	if !slices.Equal(got, want) {
		t.Errorf("sequences in the topic\n%v\nwant\n%v", got, want)
	}
}

func wantResult(t *testing.T, results []error, i int, scope sinks.Scope, permanent bool, reason, text string) {
	t.Helper()
	if results == nil || results[i] == nil {
		t.Errorf("message %d is acknowledged, want %s", i, reason)
		return
	}
	err := results[i]
	if sinks.ScopeOf(err) != scope || sinks.IsPermanent(err) != permanent || sinks.ReasonOf(err) != reason || !strings.Contains(err.Error(), text) {
		t.Errorf("message %d: scope %s, permanent %t, reason %s, %q; want %s, %t, %s, with %q", i,
			sinks.ScopeOf(err), sinks.IsPermanent(err), sinks.ReasonOf(err), err, scope, permanent, reason, text)
	}
}

// TestTopicRefusesLarge has a topic with a bound lower than the sink's: the
// batch is taken apart until the message that is too large is alone.
func TestTopicRefusesLarge(t *testing.T) {
	p := open(t, testConfig(t))
	topic := newTopic(t, 1, kafkago.ConfigEntry{ConfigName: "max.message.bytes", ConfigValue: "20000"})
	random := make([]byte, 30_000)
	for i := range random {
		random[i] = byte(rand.IntN(256))
	}
	var messages, want []sinks.Message
	for n := range 1000 {
		m := publishable(topic, int64(n), fmt.Appendf(nil, "key-%d", n%10))
		if n == 503 {
			m.Payload = random
		}
		messages = append(messages, m)
		if n < 503 || n%10 != 3 {
			want = append(want, m)
		}
	}
	results := p.Publish(t.Context(), messages)
	wantResult(t, results, 503, sinks.ScopeMessage, true, "message_too_large", topic)
	wantResult(t, results, 503, sinks.ScopeMessage, true, "message_too_large", "max.message.bytes")
	for i, err := range results {
		if skipped := i > 503 && i%10 == 3; skipped {
			wantResult(t, results, i, sinks.ScopeSkipped, false, "skipped", "")
		} else if err != nil && i != 503 {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	wantSequences(t, readTopic(t, topic, len(want), 20*time.Second), want)
}

// TestRecordErrors has a compacted topic, which refuses records without key and
// names them.
func TestRecordErrors(t *testing.T) {
	p := open(t, testConfig(t))
	topic := newTopic(t, 1, kafkago.ConfigEntry{ConfigName: "cleanup.policy", ConfigValue: "compact"})
	var messages, want []sinks.Message
	for n := range 30 {
		m := publishable(topic, int64(n), fmt.Appendf(nil, "key-%d", n))
		if n%10 == 5 {
			m.Key = nil
		} else {
			want = append(want, m)
		}
		messages = append(messages, m)
	}
	results := p.Publish(t.Context(), messages)
	for i := range messages {
		if i%10 == 5 {
			wantResult(t, results, i, sinks.ScopeMessage, true, "invalid_message", topic)
		} else if results != nil && results[i] != nil {
			t.Errorf("message %d: %v", i, results[i])
		}
	}
	wantSequences(t, readTopic(t, topic, len(want), 20*time.Second), want)
}

func TestCompression(t *testing.T) {
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		t.Run(codec, func(t *testing.T) {
			config := testConfig(t)
			config.Compression = codec
			p := open(t, config)
			topic := newTopic(t, 1)
			var messages []sinks.Message
			for n := range 5000 {
				m := publishable(topic, int64(n), []byte("k"))
				m.Payload = bytes.Repeat(fmt.Appendf(nil, "%d,", n), 50)
				messages = append(messages, m)
			}
			if results := p.Publish(t.Context(), messages); results != nil {
				t.Fatal(results[0])
			}
			records := readTopic(t, topic, len(messages), 20*time.Second)
			wantSequences(t, records, messages)
			for i, r := range records {
				if !bytes.Equal(r.value, messages[i].Payload) {
					t.Fatalf("record %d: %q", i, r.value)
				}
			}
		})
	}
}

func TestPartitionsAreJavas(t *testing.T) {
	p := open(t, testConfig(t))
	topic := newTopic(t, 12)
	var messages []sinks.Message
	for n := range 200 {
		messages = append(messages, publishable(topic, int64(n), fmt.Appendf(nil, "key-%d", n)))
	}
	if results := p.Publish(t.Context(), messages); results != nil {
		t.Fatal(results)
	}
	all := make([]int, 12)
	for i := range all {
		all[i] = i
	}
	for _, r := range readTopic(t, topic, len(messages), 20*time.Second) {
		if want := (kafkago.Murmur2Balancer{}).Balance(kafkago.Message{Key: r.key}, all...); r.partition != want {
			t.Errorf("key %s is in partition %d, want %d", r.key, r.partition, want)
		}
	}
}

func TestNullKeysSpread(t *testing.T) {
	p := open(t, testConfig(t))
	topic := newTopic(t, 4)
	var messages []sinks.Message
	for n := range 4 * spread * 3 {
		messages = append(messages, publishable(topic, int64(n), nil))
	}
	if results := p.Publish(t.Context(), messages); results != nil {
		t.Fatal(results)
	}
	counts := map[int]int{}
	for _, r := range readTopic(t, topic, len(messages), 20*time.Second) {
		counts[r.partition]++
	}
	for partition := range 4 {
		if counts[partition] != 3*spread {
			t.Errorf("partition %d has %d messages, want %d", partition, counts[partition], 3*spread)
		}
	}
}

// TestTopicComesUp creates the topic while its messages wait, and again after
// it was deleted.
func TestTopicComesUp(t *testing.T) {
	p := open(t, testConfig(t))
	topic := randomName("late")
	t.Cleanup(func() { deleteTopic(t, topic) })
	m := publishable(topic, 1, []byte("k"))
	began := time.Now()
	wantResult(t, p.Publish(t.Context(), []sinks.Message{m}), 0, sinks.ScopeDestination, false, "unknown_topic", topic)
	if took := time.Since(began); took > grace+3*time.Second {
		t.Errorf("the first time took %s", took)
	}
	began = time.Now()
	wantResult(t, p.Publish(t.Context(), []sinks.Message{m}), 0, sinks.ScopeDestination, false, "unknown_topic", "create it")
	if took := time.Since(began); took > grace {
		t.Errorf("the second time took %s: a topic known to be unknown must not be waited for", took)
	}
	for round := range 2 {
		createTopic(t, topic, 2)
		var results []error
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if results = p.Publish(t.Context(), []sinks.Message{m, publishable(topic, 2, []byte("k"))}); results == nil {
				break
			}
		}
		if results != nil {
			t.Fatalf("round %d, after the topic was created: %v", round, results[0])
		}
		if round == 0 {
			deleteTopic(t, topic)
			for deadline := time.Now().Add(20 * time.Second); p.Verify(t.Context(), sinks.Destination{Name: topic}) == nil; time.Sleep(50 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the topic was not deleted")
				}
			}
		}
	}
	wantSequences(t, readTopic(t, topic, 2, 20*time.Second), []sinks.Message{m, publishable(topic, 2, nil)})
}

func TestInvalidTopic(t *testing.T) {
	p := open(t, testConfig(t))
	for _, topic := range []string{"no/slashes", "no spaces", "..", strings.Repeat("x", 250)} {
		m := publishable(topic, 1, []byte("k"))
		wantResult(t, p.Publish(t.Context(), []sinks.Message{m}), 0, sinks.ScopeMessage, true, "invalid_topic", topic)
		err := p.Verify(t.Context(), sinks.Destination{Name: topic})
		wantResult(t, []error{err}, 0, sinks.ScopeMessage, true, "invalid_topic", topic)
	}
}

// TestMorePartitions adds partitions to a topic: keys go on in order, in the
// partitions that Java would choose from then on.
func TestMorePartitions(t *testing.T) {
	p := open(t, testConfig(t))
	topic := newTopic(t, 1)
	if results := p.Publish(t.Context(), []sinks.Message{publishable(topic, 1, []byte("k"))}); results != nil {
		t.Fatal(results)
	}
	layouts := p.Layouts()
	if _, err := p.layouts.ask(t.Context(), []string{topic}); err != nil {
		t.Fatal(err)
	}
	if now := p.Layouts(); now != layouts {
		t.Errorf("the layouts are other ones, %d after %d, although nothing changed", now, layouts)
	}
	client, done := admin(t)
	defer done()
	response, err := client.CreatePartitions(t.Context(), &kafkago.CreatePartitionsRequest{Topics: []kafkago.TopicPartitionsConfig{{Name: topic, Count: 5}}})
	if err != nil || response.Errors[topic] != nil {
		t.Fatalf("more partitions: %v, %v", err, response)
	}
	key := []byte("k")
	for partitionOf(key, 5) == 0 { // take one that moves
		key = append(key, 'k')
	}
	want := int(partitionOf(key, 5))
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if results := p.Publish(t.Context(), []sinks.Message{publishable(topic, 2, key)}); results != nil {
			t.Fatal(results)
		}
		records := readTopic(t, topic, 2, 10*time.Second)
		if slices.ContainsFunc(records, func(r record) bool { return r.partition == want && bytes.Equal(r.key, key) }) {
			if p.Layouts() == layouts {
				t.Error("the layouts are the same, although there are more partitions")
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing came to partition %d", want)
		}
	}
}

// TestBrokerAway checks what an unreachable broker looks like.
func TestBrokerAway(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	config := Defaults()
	config.Brokers = []string{address}
	p := open(t, config)
	began := time.Now()
	results := p.Publish(t.Context(), []sinks.Message{publishable("orders", 1, []byte("k")), publishable("mail", 2, nil)})
	for i := range 2 {
		wantResult(t, results, i, sinks.ScopeSink, false, "connection", address)
		wantResult(t, results, i, sinks.ScopeSink, false, "connection", "check that the broker runs")
	}
	wantResult(t, []error{p.Ping(t.Context())}, 0, sinks.ScopeSink, false, "connection", "connection refused")
	wantResult(t, []error{p.Verify(t.Context(), sinks.Destination{Name: "orders"})}, 0, sinks.ScopeSink, false, "connection", "connection refused")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("three calls took %s", took)
	}
}

// TestSilentBroker has a listener that never answers: contexts bound the calls.
func TestSilentBroker(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	config := Defaults()
	config.Brokers = []string{listener.Addr().String()}
	p := open(t, config)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	results := p.Publish(ctx, []sinks.Message{publishable("orders", 1, []byte("k"))})
	wantResult(t, results, 0, sinks.ScopeSink, false, "timeout", "not acknowledged in time")
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("Publish took %s", took)
	}
}
