package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"
)

// stallLimit is how long a topic may get nothing more before it is given up.
const stallLimit = time.Minute

// published counts the topic's messages, which costs nobody much. A broker that
// is busy may not know at once that it leads a new topic.
func (b *bench) published(ctx context.Context, topic string) (int, error) {
	for began := time.Now(); ; {
		n, err := b.count(ctx, topic)
		var refusal kafka.Error
		if !errors.As(err, &refusal) || !refusal.Temporary() || time.Since(began) > stallLimit {
			return n, err
		}
		if err := pause(ctx); err != nil {
			return 0, err
		}
	}
}

func (b *bench) count(ctx context.Context, topic string) (int, error) {
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
func (b *bench) awaitPublished(ctx context.Context, topic string, rows int, s subject) error {
	last, moved := -1, time.Now()
	for {
		n, err := b.published(ctx, topic)
		if err != nil {
			return err
		}
		if n >= rows {
			if done, err := s.settled(ctx); done || err != nil {
				return err
			}
		}
		if n > last {
			last, moved = n, time.Now()
		}
		if time.Since(moved) > stallLimit {
			return fmt.Errorf("%d of %d rows arrived, and none for %v; its log ends with:\n%s", n, rows, stallLimit, s.logTail())
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}
