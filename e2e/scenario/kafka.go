package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/outbox"
)

// partitions is how many a test's topic has unless it asks for others.
const partitions = 6

// KafkaLog reads the topics of one test, every partition from its beginning to
// its high watermark.
type KafkaLog struct {
	// brokers are those that a relay is told of.
	brokers []string
	topics  []string
	client  *kafka.Client

	mu      sync.Mutex
	next    map[topicPartition]int64
	records []Record
}

type topicPartition struct {
	topic     string
	partition int
}

// NewKafkaLog makes a topic with 6 partitions on the shared Kafka. It is
// removed when the test ends.
func NewKafkaLog(t testing.TB) *KafkaLog {
	t.Helper()
	return NewKafkaTopics(t, servers.FromEnvironment().KafkaBrokers, 1, partitions)
}

// NewKafkaTopics makes topics with new names on the brokers.
func NewKafkaTopics(t testing.TB, brokers []string, topics, partitions int) *KafkaLog {
	t.Helper()
	var names []string
	var configs []kafka.TopicConfig
	for range topics {
		name := fmt.Sprintf("scenario-%08x", rand.Uint32())
		names = append(names, name)
		configs = append(configs, kafka.TopicConfig{Topic: name, NumPartitions: partitions, ReplicationFactor: 1})
	}
	k := ReadKafkaTopics(t, brokers, names, partitions)
	response, err := k.client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: configs})
	if err != nil {
		t.Fatalf("create topics on %v: %v", brokers, err)
	}
	for name, err := range response.Errors {
		if err != nil {
			t.Fatalf("create topic %s: %v", name, err)
		}
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		// A broker of the test's own may be gone.
		_, _ = k.client.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: k.topics})
	})
	Await(t, 20*time.Second, "the topic's leaders", func() (bool, string) {
		_, err := k.Len(t.Context())
		return err == nil, fmt.Sprint(err)
	})
	return k
}

// ReadKafkaTopics is the log of topics that the caller makes, each with as many
// partitions. It reads them through the brokers, which are also those that a
// relay is told of, unless SinkBrokers says otherwise.
func ReadKafkaTopics(t testing.TB, brokers, topics []string, partitions int) *KafkaLog {
	t.Helper()
	transport := &kafka.Transport{MetadataTTL: time.Second, DialTimeout: 3 * time.Second}
	t.Cleanup(transport.CloseIdleConnections)
	k := &KafkaLog{
		brokers: brokers,
		topics:  topics,
		client:  &kafka.Client{Addr: kafka.TCP(brokers...), Timeout: 10 * time.Second, Transport: transport},
		next:    map[topicPartition]int64{},
	}
	for _, topic := range topics {
		k.Repartitioned(topic, partitions)
	}
	return k
}

// SinkBrokers has relays reach the brokers at other addresses, those of proxies.
func (k *KafkaLog) SinkBrokers(brokers ...string) { k.brokers = brokers }

// Repartitioned tells the log that the topic has so many partitions now.
func (k *KafkaLog) Repartitioned(topic string, partitions int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for partition := range partitions {
		if _, known := k.next[topicPartition{topic, partition}]; !known {
			k.next[topicPartition{topic, partition}] = 0
		}
	}
}

// Deleted tells the log that the topic is gone. What was read of it stays in the
// log; a new topic of that name begins anew, with Repartitioned.
func (k *KafkaLog) Deleted(topic string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.next, func(place topicPartition, _ int64) bool { return place.topic == topic })
}

// Sink implements Log.
func (k *KafkaLog) Sink() Config { return Config{"kafka": Config{"brokers": k.brokers}} }

// Topics implements Log.
func (k *KafkaLog) Topics() []string { return k.topics }

// Records implements Log.
func (k *KafkaLog) Records(ctx context.Context) ([]Record, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	ends, err := k.ends(ctx)
	if err != nil {
		return nil, err
	}
	for place, end := range ends {
		for k.next[place] < end {
			if err := k.fetch(ctx, place); err != nil {
				return nil, fmt.Errorf("read %s/%d from %d to %d: %w", place.topic, place.partition, k.next[place], end, err)
			}
		}
	}
	return k.records[:len(k.records):len(k.records)], nil
}

// Len returns how many records there are, without reading them.
func (k *KafkaLog) Len(ctx context.Context) (n int64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	ends, err := k.ends(ctx)
	for _, end := range ends {
		n += end
	}
	return n, err
}

// Unconsumed is how many records are beyond the offsets that the group has
// committed.
func (k *KafkaLog) Unconsumed(ctx context.Context, group string) (n int64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	ends, err := k.ends(ctx)
	if err != nil {
		return 0, err
	}
	topics := map[string][]int{}
	for place := range ends {
		topics[place.topic] = append(topics[place.topic], place.partition)
	}
	response, err := k.client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: group, Topics: topics})
	if err == nil {
		err = response.Error
	}
	if err != nil {
		return 0, fmt.Errorf("offsets of group %s: %w", group, err)
	}
	for topic, offsets := range response.Topics {
		for _, offset := range offsets {
			if offset.Error != nil {
				return 0, fmt.Errorf("offset of %s/%d in group %s: %w", topic, offset.Partition, group, offset.Error)
			}
			// -1: none is committed yet.
			n += ends[topicPartition{topic, offset.Partition}] - max(0, offset.CommittedOffset)
		}
	}
	return n, nil
}

// ends asks for the high watermarks. The caller holds the lock.
func (k *KafkaLog) ends(ctx context.Context) (map[topicPartition]int64, error) {
	requests := map[string][]kafka.OffsetRequest{}
	for place := range k.next {
		requests[place.topic] = append(requests[place.topic], kafka.LastOffsetOf(place.partition))
	}
	response, err := k.client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: requests})
	if err != nil {
		return nil, err
	}
	ends := map[topicPartition]int64{}
	for topic, offsets := range response.Topics {
		for _, offset := range offsets {
			if offset.Error != nil {
				return nil, fmt.Errorf("end of %s/%d: %w", topic, offset.Partition, offset.Error)
			}
			ends[topicPartition{topic, offset.Partition}] = offset.LastOffset
		}
	}
	if len(ends) != len(k.next) {
		return nil, fmt.Errorf("%d of %d partitions answered", len(ends), len(k.next))
	}
	return ends, nil
}

// fetch reads some records from where the last fetch ended.
func (k *KafkaLog) fetch(ctx context.Context, place topicPartition) error {
	from := k.next[place]
	response, err := k.client.Fetch(ctx, &kafka.FetchRequest{
		Topic: place.topic, Partition: place.partition, Offset: from,
		MinBytes: 1, MaxBytes: 8 << 20, MaxWait: 500 * time.Millisecond,
	})
	if err != nil {
		return err
	}
	if response.Error != nil {
		return response.Error
	}
	for {
		record, err := response.Records.ReadRecord()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if record.Offset < k.next[place] {
			continue // the fetch begins with the batch that the offset is in
		}
		read, err := kafkaRecord(place, record)
		if err != nil {
			return err
		}
		k.records = append(k.records, read)
		k.next[place] = record.Offset + 1
	}
	if k.next[place] == from {
		return errors.New("the broker returned no records")
	}
	return nil
}

func kafkaRecord(place topicPartition, record *kafka.Record) (Record, error) {
	r := Record{
		Topic: place.topic, Partition: place.partition, Keyed: record.Key != nil, Headers: map[string]string{},
		Where: fmt.Sprintf("%s/%d@%d", place.topic, place.partition, record.Offset),
	}
	if record.Key != nil {
		key, err := kafka.ReadAll(record.Key)
		if err != nil {
			return r, err
		}
		r.Key = string(key)
	}
	if record.Value != nil {
		var err error
		if r.Payload, err = kafka.ReadAll(record.Value); err != nil {
			return r, err
		}
	}
	for _, header := range record.Headers {
		r.Headers[header.Key] = string(header.Value)
	}
	return r, r.identify()
}

// identify takes id and sequence from the headers, which another style than
// plain does not have.
func (r *Record) identify() (err error) {
	if id, ok := r.Headers["message-id"]; ok {
		if r.MessageID, err = outbox.ParseUUID(id); err != nil {
			return fmt.Errorf("%s: message-id %q: %w", r.Where, id, err)
		}
	}
	if sequence, ok := r.Headers["message-sequence"]; ok {
		if r.Sequence, err = strconv.ParseInt(sequence, 10, 64); err != nil {
			return fmt.Errorf("%s: message-sequence %q: %w", r.Where, sequence, err)
		}
	}
	return nil
}
