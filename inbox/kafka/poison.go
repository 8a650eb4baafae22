package kafka

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"

	"github.com/outboxrelay/relay/inbox/internal/consume"
)

// The headers of a dead letter, beside all that the message had.
const (
	// HeaderError is why the message could not be processed.
	HeaderError = "inbox-error"
	// HeaderAttempts is how often it was tried, as a decimal number.
	HeaderAttempts = "inbox-attempts"
	// HeaderConsumer is the inbox's Consumer.
	HeaderConsumer = "inbox-consumer"
	// HeaderSource is where the message was: topic-partition@offset.
	HeaderSource = "inbox-source"
)

// deadLetterTimeout bounds one attempt to publish a dead letter.
const deadLetterTimeout = 30 * time.Second

// publisher publishes dead letters to a topic.
func (c *Consumer) publisher(topic string) func(context.Context, *consume.Item, consume.Failure) (string, error) {
	return func(ctx context.Context, item *consume.Item, f consume.Failure) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, deadLetterTimeout)
		defer cancel()
		return "topic " + topic, c.publish(ctx, topic, item.Delivery.(record).key, c.deadLetter(item, f))
	}
}

// deadLetter is the message as it was, with what failed in its headers.
func (c *Consumer) deadLetter(item *consume.Item, f consume.Failure) protocol.Record {
	added := []protocol.Header{
		{Key: HeaderError, Value: []byte(f.Text())},
		{Key: HeaderAttempts, Value: []byte(strconv.Itoa(f.Attempts))},
		{Key: HeaderConsumer, Value: []byte(c.config.Inbox.Consumer)},
		{Key: HeaderSource, Value: fmt.Appendf(nil, "%s-%d@%d", item.Source.Name, item.Source.Partition, item.Source.Offset)},
	}
	// What an earlier consumer said of it, when it was a dead letter before.
	r := item.Delivery.(record)
	headers := slices.DeleteFunc(slices.Clone(r.headers), func(h protocol.Header) bool {
		return slices.ContainsFunc(added, func(a protocol.Header) bool { return a.Key == h.Key })
	})
	return protocol.Record{
		Key: protocol.NewBytes(r.key), Value: protocol.NewBytes(r.value), Headers: append(headers, added...),
	}
}

// publish returns nil when all in-sync replicas of the topic's partition have
// the record. After any error it may be there or not.
func (c *Consumer) publish(ctx context.Context, topic string, key []byte, record protocol.Record) error {
	since := time.Now().Add(-metadataAge)
	known, err := c.cluster.get(ctx, since)
	if err != nil {
		return err
	}
	partition, err := choose(known.topics[topic], key)
	if err != nil {
		return fmt.Errorf("topic %q for dead letters: %w: create it, and allow this user to write to it", topic, err)
	}
	// Dead letters are rare: no connection is kept for them.
	connection, err := c.cluster.dialLeader(ctx, topic, partition, since)
	if err != nil {
		return err
	}
	defer connection.close()
	message, err := connection.roundTrip(ctx, deadLetterTimeout, &produce.Request{
		Acks: int16(kafkago.RequireAll), Timeout: milliseconds(requestTimeout),
		Topics: []produce.RequestTopic{{Topic: topic, Partitions: []produce.RequestPartition{{
			Partition: partition, RecordSet: protocol.RecordSet{Version: 2, Records: protocol.NewRecordReader(record)},
		}}}},
	})
	if err != nil {
		return err
	}
	topics := message.(*produce.Response).Topics
	if len(topics) != 1 || len(topics[0].Partitions) != 1 {
		return fmt.Errorf("topic %q for dead letters: the broker answered without the partition", topic)
	}
	if p := topics[0].Partitions[0]; p.ErrorCode != 0 {
		return explainProduce(topic, p)
	}
	return nil
}

func explainProduce(topic string, p produce.ResponsePartition) error {
	reason := kafkago.Error(p.ErrorCode)
	err := fmt.Errorf("topic %q for dead letters: %w", topic, reason)
	for _, record := range p.RecordErrors {
		err = fmt.Errorf("%w: %s", err, record.BatchIndexErrorMessage)
	}
	switch reason {
	case kafkago.TopicAuthorizationFailed:
		return fmt.Errorf("%w: allow this user WRITE on the topic", err)
	case kafkago.MessageSizeTooLarge, kafkago.RecordListTooLarge:
		return fmt.Errorf("%w: raise the topic's max.message.bytes by 10 kB: a dead letter has more headers than the message", err)
	}
	return err
}

// choose returns the partition that Java's producer would: keys stay together.
func choose(topic topicLayout, key []byte) (int32, error) {
	if topic.err != nil {
		return 0, topic.err
	}
	if len(topic.leaders) == 0 {
		return 0, kafkago.UnknownTopicOrPartition
	}
	ids := slices.Sorted(maps.Keys(topic.leaders))
	if key == nil {
		return ids[rand.IntN(len(ids))], nil //nolint:gosec // not a secret
	}
	return ids[kafkago.Murmur2Balancer{Consistent: true}.Balance(kafkago.Message{Key: key}, indexes(len(ids))...)], nil
}

func indexes(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}
