package inbox

import "time"

// Message is a message as a consumer received it.
type Message struct {
	// ID is the message's identity; a message is a duplicate of one with the
	// same ID. Zero means that it has none: see Inbox.IDOf and ErrNoID.
	ID ID
	// Topic is the Kafka topic or RabbitMQ's routing key.
	Topic string
	// Key is Kafka's record key, or what the header message-key says; nil
	// means none, which is not the same as an empty one.
	Key []byte
	// Type is what happened: "OrderPlaced". It may be empty.
	Type string
	// Payload is what was sent, byte for byte. Nil is a Kafka tombstone.
	Payload     []byte
	ContentType string
	// Headers are all headers that the message came with, as text, those that
	// other fields are decoded from included.
	Headers map[string]string
	// Sequence is the outbox row's id, which ascends within a topic and key; 0
	// means unknown.
	Sequence int64
	// Time is when the message was written, zero when unknown.
	Time time.Time
	// Replayed says that the message was published before and was sent again
	// on an operator's request.
	Replayed bool
	// Source is where the message was read; it is recorded with the id.
	Source Source
	// ReceivedAt is when the consumer first had the message in its hands; it is
	// recorded with the id, beside the time of the transaction. Zero means the
	// transaction's time.
	ReceivedAt time.Time

	// former is an identity that the message had before, which is claimed as well;
	// zero for none.
	former ID
	// badID says why a message with something like an id has none.
	badID error
}

// Source is where a message was read. The zero value is unknown.
type Source struct {
	// Name is the Kafka topic or the RabbitMQ queue.
	Name string
	// Partition and Offset are Kafka's; they mean something only when
	// HasOffset is set.
	Partition int32
	Offset    int64
	HasOffset bool
	// Exchange is the one that a RabbitMQ message was published to. It is
	// shown in traces and not recorded.
	Exchange string
}

// KafkaSource is a record's place in a topic.
func KafkaSource(topic string, partition int32, offset int64) Source {
	return Source{Name: topic, Partition: partition, Offset: offset, HasOffset: true}
}

// QueueSource is a queue.
func QueueSource(queue string) Source {
	return Source{Name: queue}
}
