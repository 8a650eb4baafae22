package rabbitmq_test

import (
	"context"
	"fmt"
	"net/url"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
	"github.com/outboxrelay/relay/sinks/sinktest"
)

// through opens a publisher that reaches the broker by a proxy.
func (b broker) through(t testing.TB, delay time.Duration) (*rabbitmq.Publisher, *sinktest.Proxy) {
	t.Helper()
	address, err := url.Parse(b.url)
	if err != nil {
		t.Fatal(err)
	}
	proxy := sinktest.NewProxy(t, address.Host, delay)
	address.Host = proxy.Address
	b.url = address.String()
	publisher := b.publisher(t, nil)
	t.Cleanup(func() { _ = publisher.Close() })
	return publisher, proxy
}

// batchesTo makes batches of messages that go round the keys.
func batchesTo(queue string, n, size, keys int) (batches [][]sinks.Message) {
	for i := range n {
		if i%size == 0 {
			batches = append(batches, nil)
		}
		last := &batches[len(batches)-1]
		*last = append(*last, message("", queue, fmt.Sprint("key-", i%keys), int64(i)))
	}
	return batches
}

// TestStreamThroughACutNetwork breaks the connection many times with 1,000 small batches
// in flight.
func TestStreamThroughACutNetwork(t *testing.T) {
	orders(t, func(t *testing.T, b broker) {
		queue := b.queue(t, nil)
		publisher, proxy := b.through(t, time.Millisecond)
		cut := make(chan struct{})
		go func() {
			defer close(cut)
			for range 30 { // not for ever: a busy machine would only connect
				time.Sleep(40 * time.Millisecond)
				proxy.Cut()
			}
		}()
		const n = 5000
		failed := sinktest.Relay(t, publisher.Stream(sinks.Window{Messages: 1000}), batchesTo(queue, n, 5, 31), 0)
		<-cut
		received := b.read(t, queue, n, 30*time.Second)
		seen, highest := map[int64]bool{}, map[string]int64{}
		for _, d := range received {
			sequence, key := sequenceOf(d), d.Headers["message-key"].(string)
			if !seen[sequence] && sequence < highest[key] {
				t.Fatalf("key %s: %d came after %d", key, sequence, highest[key])
			}
			seen[sequence] = true
			highest[key] = max(highest[key], sequence)
		}
		if len(seen) != n {
			t.Errorf("%d different messages, want %d", len(seen), n)
		}
		t.Logf("%d messages failed, %d duplicates", failed, len(received)-n)
		if failed == 0 {
			t.Error("nothing failed: the test shows nothing")
		}
	})
}

// TestStreamNack has a full queue refuse a message in the middle of many batches.
func TestStreamNack(t *testing.T) {
	orders(t, func(t *testing.T, b broker) {
		full := b.queue(t, amqp.Table{"x-max-length": int64(3), "x-overflow": "reject-publish"})
		queue := b.queue(t, nil)
		publisher := b.open(t, nil)
		stream := publisher.Stream(sinks.Window{})
		var batches [][]sinks.Message
		var receipts []sinks.Receipt
		for i := range int64(10) {
			batches = append(batches, []sinks.Message{message("", full, "a", i), message("", queue, "a", i)})
			receipts = append(receipts, stream.Send(t.Context(), batches[i]))
		}
		var behind []sinks.Message
		for i, receipt := range receipts {
			var first, second error
			if results := receipt.Results(); results != nil {
				first, second = results[0], results[1]
			}
			switch {
			case i < 3 && first != nil:
				t.Errorf("batch %d: %v", i, first)
			case i == 3:
				failure{sinks.ScopeDestination, false, "nack", full}.check(t, "first", first)
			case i > 3:
				failure{sinks.ScopeSkipped, false, "skipped", ""}.check(t, fmt.Sprint("batch ", i), first)
			}
			if second != nil {
				t.Errorf("batch %d, another queue: %v", i, second)
			}
			if i >= 3 {
				behind = append(behind, batches[i][0])
			}
		}
		b.wantSequences(t, full, 0, 1, 2)
		b.wantSequences(t, queue, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
		// There is room, but the caller does not know yet.
		failure{sinks.ScopeSkipped, false, "skipped", ""}.check(t, "before Resume", stream.Send(t.Context(), behind[:1]).Results()[0])
		b.wantSequences(t, full)
		stream.Resume(behind[:1])
		for i := range behind[:3] {
			if results := stream.Send(t.Context(), behind[i:i+1]).Results(); results != nil {
				t.Error(results)
			}
		}
		b.wantSequences(t, full, 3, 4, 5)
	})
}

// TestStreamBlocks has a broker that confirms nothing for a while: Send blocks once the
// window is full, and returns when its context ends.
func TestStreamBlocks(t *testing.T) {
	orders(t, func(t *testing.T, b broker) {
		queue := b.queue(t, nil)
		publisher, proxy := b.through(t, 0)
		if err := publisher.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		batches := batchesTo(queue, 50, 10, 5)
		stream := publisher.Stream(sinks.Window{Messages: 20})
		proxy.Hold()
		first, second := stream.Send(t.Context(), batches[0]), stream.Send(t.Context(), batches[1])
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		third := stream.Send(ctx, batches[2])
		if ctx.Err() == nil {
			t.Error("Send does not block although the window is full")
		}
		failure{sinks.ScopeSink, false, "timeout", "not sent in time"}.check(t, "out of time", third.Results()[0])
		proxy.Pass()
		for i, receipt := range []sinks.Receipt{first, second} {
			if results := receipt.Results(); results != nil {
				t.Errorf("batch %d: %v", i, results)
			}
		}
		failure{sinks.ScopeSkipped, false, "skipped", ""}.check(t, "behind it", stream.Send(t.Context(), batches[3]).Results()[0])
		stream.Resume(batches[2])
		for _, batch := range batches[2:] {
			if results := stream.Send(t.Context(), batch).Results(); results != nil {
				t.Error(results)
			}
		}
		var want []int64
		for i := range int64(50) {
			want = append(want, i)
		}
		b.wantSequences(t, queue, want...)
	})
}

// BenchmarkStream sends batches of 100 through a network of 5 ms one way, with one and
// more of them in flight.
func BenchmarkStream(b *testing.B) {
	for _, order := range []string{rabbitmq.OrderStrict, rabbitmq.OrderPipelined} {
		for _, inFlight := range []int{1, 4, 16} {
			b.Run(fmt.Sprintf("%s/in-flight=%d", order, inFlight), func(b *testing.B) {
				server := newBroker(b)
				server.order = order
				queue := server.queue(b, nil)
				publisher, _ := server.through(b, 5*time.Millisecond)
				const size = 100
				batches := batchesTo(queue, 64*size, size, 6400)
				stream := publisher.Stream(sinks.Window{Messages: inFlight * size})
				sinktest.BenchmarkStream(b, stream, batches)
			})
		}
	}
}
