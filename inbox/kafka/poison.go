package kafka

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/parked"
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

// maxError bounds HeaderError: a dead letter may be larger than the message by
// this and little more.
const maxError = 1000

// putAsideTimeout bounds one attempt to put a message aside.
const putAsideTimeout = 30 * time.Second

// failure is what a message was given up for.
type failure struct {
	err      error
	attempts int
}

// putAside does what OnPoison says and tells where the message is now. The
// message is safe there when it returns no error.
func (c *Consumer) putAside(ctx context.Context, m message, f failure) (where string, err error) {
	ctx, cancel := context.WithTimeout(ctx, putAsideTimeout)
	defer cancel()
	switch poison := c.config.OnPoison.(type) {
	case Park:
		return "parked", parked.Lot{Inbox: c.config.Inbox}.Park(ctx, c.config.DB, m.Message, f.attempts, f.err)
	case DeadLetter:
		return "topic " + poison.Topic, c.publish(ctx, poison.Topic, m.record.key, c.deadLetter(m, f))
	}
	return "", fmt.Errorf("OnPoison: %T is neither Park nor DeadLetter", c.config.OnPoison)
}

// aside is where putAside puts messages.
func (c *Consumer) aside() inbox.Aside {
	if _, ok := c.config.OnPoison.(DeadLetter); ok {
		return inbox.DeadLettered
	}
	return inbox.Parked
}

// deadLetter is the message as it was, with what failed in its headers.
func (c *Consumer) deadLetter(m message, f failure) protocol.Record {
	added := []protocol.Header{
		{Key: HeaderError, Value: []byte(shorten(f.err.Error()))},
		{Key: HeaderAttempts, Value: []byte(strconv.Itoa(f.attempts))},
		{Key: HeaderConsumer, Value: []byte(c.config.Inbox.Consumer)},
		{Key: HeaderSource, Value: []byte(source(m))},
	}
	// What an earlier consumer said of it, when it was a dead letter before.
	headers := slices.DeleteFunc(slices.Clone(m.record.headers), func(h protocol.Header) bool {
		return slices.ContainsFunc(added, func(a protocol.Header) bool { return a.Key == h.Key })
	})
	return protocol.Record{
		Key: protocol.NewBytes(m.record.key), Value: protocol.NewBytes(m.record.value), Headers: append(headers, added...),
	}
}

func source(m message) string {
	return fmt.Sprintf("%s-%d@%d", m.Source.Name, m.Source.Partition, m.Source.Offset)
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
	message, err := connection.roundTrip(ctx, putAsideTimeout, &produce.Request{
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

// shorten returns the beginning of an error as valid UTF-8.
func shorten(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= maxError {
		return text
	}
	end := maxError
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}
