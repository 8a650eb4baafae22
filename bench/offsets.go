package main

import (
	"context"

	"github.com/segmentio/kafka-go"
)

// published counts the topic's messages, which costs nobody much.
func (b *bench) published(ctx context.Context, topic string) (int, error) {
	client := &kafka.Client{Addr: kafka.TCP(b.kafka.Brokers()...)}
	requests := make([]kafka.OffsetRequest, b.partitions)
	for i := range requests {
		requests[i] = kafka.LastOffsetOf(i)
	}
	response, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: requests}})
	if err != nil {
		return 0, err
	}
	total := 0
	for _, partition := range response.Topics[topic] {
		if partition.Error != nil {
			return 0, partition.Error
		}
		total += int(partition.LastOffset)
	}
	return total, nil
}

// awaitPublished waits until the topic has so many messages, and then until all
// rows are settled.
func (b *bench) awaitPublished(ctx context.Context, topic string, rows int, settled func() (bool, error)) error {
	for {
		n, err := b.published(ctx, topic)
		if err != nil {
			return err
		}
		if n >= rows {
			if done, err := settled(); done || err != nil {
				return err
			}
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}
