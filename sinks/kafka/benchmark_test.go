package kafka

import (
	"bytes"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/sinktest"
)

// BenchmarkPublish has 4 callers with 1,000 or 4,000 rows of 200 bytes a call, as the
// relay's workers have, and 6 partitions.
func BenchmarkPublish(b *testing.B) {
	for _, codec := range []string{"none", "lz4"} {
		for _, size := range []int{1000, 4000} {
			b.Run(fmt.Sprintf("%s/%d", codec, size), func(b *testing.B) { benchmarkPublish(b, codec, size) })
		}
	}
}

func benchmarkPublish(b *testing.B, codec string, size int) {
	config := testConfig(b)
	config.Compression = codec
	p := open(b, config)
	topic := newTopic(b, 6)
	const callers = 4
	payload := bytes.Repeat([]byte("x"), 200)
	var batches [callers][]sinks.Message
	for caller := range batches {
		for n := range size {
			m := publishable(topic, int64(n), fmt.Appendf(nil, "order-%d-%d", caller, n%250))
			m.Payload = payload
			batches[caller] = append(batches[caller], m)
		}
	}
	if results := p.Publish(b.Context(), batches[0]); results != nil {
		b.Fatal(results[0])
	}
	b.ReportAllocs()
	cpu := cpuTime(b)
	for b.Loop() {
		var all sync.WaitGroup
		for caller := range callers {
			all.Go(func() {
				for range 10 {
					if results := p.Publish(b.Context(), batches[caller]); results != nil {
						b.Error(results)
						return
					}
				}
			})
		}
		all.Wait()
	}
	rows := float64(b.N * callers * 10 * size)
	b.ReportMetric(rows/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/rows, "cpu-ns/row")
}

// BenchmarkStream sends batches of 100 rows of 200 bytes through a network that takes a
// while one way, with one and more of them in flight.
func BenchmarkStream(b *testing.B) {
	for _, delay := range []time.Duration{0, 5 * time.Millisecond, 10 * time.Millisecond} {
		for _, inFlight := range []int{1, 4, 16, 64} {
			b.Run(fmt.Sprintf("delay=%s/in-flight=%d", delay, inFlight), func(b *testing.B) {
				p := open(b, testConfig(b))
				if delay > 0 {
					through(p, sinktest.NewProxy(b, brokers(b)[0], delay))
				}
				topic := newTopic(b, 6)
				const size = 100
				messages := numbered(topic, 128*size, 1000)
				for i := range messages {
					messages[i].Payload = bytes.Repeat([]byte("x"), 200)
				}
				batches := batchesOf(messages, size)
				stream := p.Stream(sinks.Window{Messages: inFlight * size})
				sinktest.BenchmarkStream(b, stream, batches)
			})
		}
	}
}

// BenchmarkPartition asks for a message's partition, as is done for each row.
func BenchmarkPartition(b *testing.B) {
	p := open(b, Config{Brokers: []string{"127.0.0.1:1"}, MaxMessageBytes: 1 << 20})
	p.layouts.topics["orders"] = &layout{asked: time.Now(), leaders: make([]int32, 12)}
	m := publishable("orders", 1, []byte("order-1234567"))
	b.ReportAllocs()
	for b.Loop() {
		if _, known := p.Partition(&m); !known {
			b.Fatal("unknown")
		}
	}
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
