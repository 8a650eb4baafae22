package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
)

// consumer notes when each row of a topic reaches it.
type consumer struct {
	cancel  context.CancelFunc
	readers sync.WaitGroup

	mu sync.Mutex
	// seen is when the row of each number came first.
	seen map[int]time.Time
	err  error
}

// consume reads a topic's partitions from now on, each message as soon as the
// broker has it.
func (b *bench) consume(ctx context.Context, topic string) *consumer {
	ctx, cancel := context.WithCancel(ctx)
	c := &consumer{cancel: cancel, seen: map[int]time.Time{}}
	for partition := range b.partitions {
		c.readers.Go(func() {
			reader := kafka.NewReader(kafka.ReaderConfig{
				Brokers: b.kafka.Brokers(), Topic: topic, Partition: partition, MinBytes: 1, MaxBytes: 1 << 20, MaxWait: time.Second,
			})
			defer func() { _ = reader.Close() }()
			c.read(ctx, reader)
		})
	}
	return c
}

func (c *consumer) read(ctx context.Context, reader *kafka.Reader) {
	for {
		message, err := reader.ReadMessage(ctx)
		at := time.Now()
		var n int
		if err == nil {
			n, err = number(string(message.Value))
		}
		c.mu.Lock()
		if _, again := c.seen[n]; err == nil && !again {
			c.seen[n] = at
		}
		if err != nil && ctx.Err() == nil {
			c.err = errors.Join(c.err, err)
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *consumer) stop() {
	c.cancel()
	c.readers.Wait()
}

// percentiles waits for all rows and returns what half and 99 % of the commits'
// rows took at most, in milliseconds.
func (c *consumer) percentiles(ctx context.Context, commits map[int]time.Time, all int) (p50, p99 float64, err error) {
	for {
		c.mu.Lock()
		came, err := len(c.seen), c.err
		c.mu.Unlock()
		if err != nil {
			return 0, 0, err
		}
		if came >= all {
			break
		}
		if err := pause(ctx); err != nil {
			return 0, 0, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	took := make([]time.Duration, 0, len(commits))
	for n, committed := range commits {
		took = append(took, c.seen[n].Sub(committed))
	}
	slices.Sort(took)
	at := func(share float64) float64 {
		return float64(took[int(share*float64(len(took)-1))].Microseconds()) / 1000
	}
	return at(0.5), at(0.99), nil
}

// document is the payload of the row of a number, of about so many bytes.
func document(n, size int) string {
	start := fmt.Sprintf(`{"n": %d, "x": "`, n)
	return start + strings.Repeat("x", max(size-len(start)-2, 1)) + `"}`
}

// number is the row's of a document.
func number(document string) (n int, err error) {
	if _, err = fmt.Sscanf(document, `{"n": %d,`, &n); err != nil {
		err = fmt.Errorf("a message is %.40q, not a document of this benchmark: %w", document, err)
	}
	return n, err
}
