package demo

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/outbox"
)

const partitions = 6

// kafkaBroker consumes each partition by itself, from its beginning.
type kafkaBroker struct {
	server *servers.Kafka
	// next is the offset that each partition's consumer reads next.
	next []atomic.Int64
}

func newKafkaBroker(server *servers.Kafka) *kafkaBroker {
	return &kafkaBroker{server: server, next: make([]atomic.Int64, partitions)}
}

func (k *kafkaBroker) Name() string { return "Kafka " + servers.KafkaVersion }

func (k *kafkaBroker) Sink() map[string]any {
	return map[string]any{"kafka": map[string]any{"brokers": k.server.Brokers()}}
}

func (k *kafkaBroker) Close() error { return k.server.Close() }

func (k *kafkaBroker) Consume(ctx context.Context, arrivals *Arrivals) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var readers sync.WaitGroup
	for partition := range k.next {
		readers.Go(func() {
			if err := k.read(ctx, partition, arrivals); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("consume partition %d: %w", partition, err))
			}
		})
	}
	readers.Wait()
	return context.Cause(ctx)
}

func (k *kafkaBroker) read(ctx context.Context, partition int, arrivals *Arrivals) error {
	reader := kafka.NewReader(kafka.ReaderConfig{
		Brokers: k.server.Brokers(), Topic: topic, Partition: partition,
		MinBytes: 1, MaxBytes: 10 << 20, MaxWait: 100 * time.Millisecond,
	})
	defer func() { _ = reader.Close() }()
	for {
		message, err := reader.ReadMessage(ctx)
		if err != nil {
			return err
		}
		record := Record{Key: string(message.Key), Where: fmt.Sprintf("partition %d offset %d", partition, message.Offset)}
		for _, header := range message.Headers {
			if header.Key == "message-id" {
				if record.MessageID, err = outbox.ParseUUID(string(header.Value)); err != nil {
					return err
				}
			}
		}
		arrivals.Add(record)
		k.next[partition].Store(message.Offset + 1)
	}
}

// Drain waits for each partition's consumer to get to its end.
func (k *kafkaBroker) Drain(ctx context.Context) error {
	client := &kafka.Client{Addr: kafka.TCP(k.server.Brokers()...), Timeout: 10 * time.Second}
	var requests []kafka.OffsetRequest
	for partition := range k.next {
		requests = append(requests, kafka.LastOffsetOf(partition))
	}
	response, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: requests}})
	if err != nil {
		return fmt.Errorf("ask for the end of topic %s: %w", topic, err)
	}
	for _, end := range response.Topics[topic] {
		if end.Error != nil {
			return fmt.Errorf("ask for the end of partition %d: %w", end.Partition, end.Error)
		}
		err := poll(ctx, func() (bool, error) { return k.next[end.Partition].Load() >= end.LastOffset, nil })
		if err != nil {
			return fmt.Errorf("partition %d is read up to offset %d of %d: %w", end.Partition, k.next[end.Partition].Load(), end.LastOffset, err)
		}
	}
	return nil
}
