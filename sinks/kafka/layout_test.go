package kafka

import (
	"fmt"
	"testing"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

// TestPartitionIsWherePublishSends compares Partition with where records are.
func TestPartitionIsWherePublishSends(t *testing.T) {
	p := open(t, testConfig(t))
	topic := newTopic(t, 5)
	var messages []sinks.Message
	for n := range 50 {
		messages = append(messages, publishable(topic, int64(n), fmt.Appendf(nil, "key-%d", n)))
	}
	if _, known := p.Partition(&messages[0]); known {
		t.Error("the partition is known before the topic's layout")
	}
	if results := p.Publish(t.Context(), messages); results != nil {
		t.Fatal(results[0])
	}
	for _, r := range readTopic(t, topic, len(messages), 20*time.Second) {
		partition, known := p.Partition(&messages[parseSequence(t, r)])
		if !known || int(partition) != r.partition {
			t.Errorf("key %s: partition %d, known %t; it is in %d", r.key, partition, known, r.partition)
		}
	}
	keyless, missing := publishable(topic, 1, nil), publishable(randomName("none"), 1, []byte("k"))
	keyless.InSequence = true
	p.Publish(t.Context(), []sinks.Message{missing})
	for _, m := range []sinks.Message{keyless, missing} {
		if partition, known := p.Partition(&m); known {
			t.Errorf("topic %s, key %q: partition %d is known", m.Destination, m.Key, partition)
		}
	}
	if n := testing.AllocsPerRun(100, func() { p.Partition(&messages[0]) }); n != 0 {
		t.Errorf("Partition allocates %v times", n)
	}
}
