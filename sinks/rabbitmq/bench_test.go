package rabbitmq_test

import (
	"fmt"
	"sync"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// BenchmarkPublish measures confirms per second of 200-byte messages over
// 1,000 keys, from four callers of 1,000 messages a call, as the relay's
// workers are.
func BenchmarkPublish(b *testing.B) {
	for _, queue := range []string{"classic", "quorum"} {
		for _, order := range []string{rabbitmq.OrderStrict, rabbitmq.OrderPipelined} {
			b.Run(queue+"/"+order, func(b *testing.B) { benchmarkPublish(b, queue, order) })
		}
	}
}

func benchmarkPublish(b *testing.B, queueType, order string) {
	server := newBroker(b)
	server.order = order
	queue := server.queue(b, amqp.Table{"x-queue-type": queueType})
	publisher := server.publisher(b, nil)
	defer publisher.Close()
	const callers, size, keys = 4, 1000, 1000
	if err := publisher.Ping(b.Context()); err != nil {
		b.Fatal(err)
	}
	var batches [callers][]sinks.Message
	for caller := range batches {
		for i := range size {
			m := message("", queue, fmt.Sprintf("order-%d-%d", caller, i%(keys/callers)), int64(i))
			m.Payload = make([]byte, 200)
			batches[caller] = append(batches[caller], m)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	var all sync.WaitGroup
	for caller, batch := range batches {
		all.Go(func() {
			for n := caller * size; n < b.N; n += callers * size {
				if results := publisher.Publish(b.Context(), batch[:min(size, b.N-n)]); results != nil {
					for _, err := range results {
						if err != nil {
							b.Error(err)
							return
						}
					}
				}
			}
		})
	}
	all.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "confirms/s")
}

// BenchmarkFewKeys measures what order strict costs when a call has few keys: one
// confirm is awaited for each message of a key.
func BenchmarkFewKeys(b *testing.B) {
	for _, keys := range []int{1, 4, 16, 64} {
		for _, order := range []string{rabbitmq.OrderStrict, rabbitmq.OrderPipelined} {
			b.Run(fmt.Sprintf("%d/%s", keys, order), func(b *testing.B) {
				server := newBroker(b)
				server.order = order
				queue := server.queue(b, amqp.Table{"x-queue-type": "classic"})
				publisher := server.publisher(b, nil)
				defer publisher.Close()
				if err := publisher.Ping(b.Context()); err != nil {
					b.Fatal(err)
				}
				batch := make([]sinks.Message, 1000)
				for i := range batch {
					batch[i] = message("", queue, fmt.Sprint("order-", i%keys), int64(i))
					batch[i].Payload = make([]byte, 200)
				}
				b.ResetTimer()
				for n := 0; n < b.N; n += len(batch) {
					if results := publisher.Publish(b.Context(), batch[:min(len(batch), b.N-n)]); results != nil {
						b.Fatal(results[0])
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "confirms/s")
			})
		}
	}
}
