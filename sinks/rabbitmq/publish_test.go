package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// orders runs a test with each value of order.
func orders(t *testing.T, run func(*testing.T, broker)) {
	b := newBroker(t)
	for _, order := range []string{rabbitmq.OrderStrict, rabbitmq.OrderPipelined} {
		b.order = order
		t.Run(order, func(t *testing.T) { run(t, b) })
	}
}

// open opens a publisher that the test's end closes.
func (b broker) open(t *testing.T, change func(*rabbitmq.Config, *sinks.Envelope)) *rabbitmq.Publisher {
	t.Helper()
	publisher := b.publisher(t, change)
	t.Cleanup(func() { _ = publisher.Close() })
	return publisher
}

func publish(t *testing.T, publisher *rabbitmq.Publisher, messages []sinks.Message) []error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	results := publisher.Publish(ctx, messages)
	if results == nil {
		results = make([]error, len(messages))
	}
	return results
}

// failure is what a test expects of an error.
type failure struct {
	scope     sinks.Scope
	permanent bool
	reason    string
	text      string
}

func (f failure) check(t *testing.T, name string, err error) {
	t.Helper()
	if err == nil || sinks.ScopeOf(err) != f.scope || sinks.IsPermanent(err) != f.permanent || sinks.ReasonOf(err) != f.reason || !strings.Contains(err.Error(), f.text) {
		t.Errorf("%s: %v (scope %s, permanent %t, reason %s), want %+v", name, err, sinks.ScopeOf(err), sinks.IsPermanent(err), sinks.ReasonOf(err), f)
	}
}

// wantSequences expects a queue to hold exactly these, in this order.
func (b broker) wantSequences(t *testing.T, queue string, want ...int64) {
	t.Helper()
	var got []int64
	for _, d := range b.read(t, queue, len(want), 10*time.Second) {
		got = append(got, sequenceOf(d))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("queue %s holds %v, want %v", queue, got, want)
	}
}

func TestMissingExchange(t *testing.T) {
	orders(t, func(t *testing.T, b broker) {
		queue := b.queue(t, nil)
		exchange := b.exchange(t, "direct", queue, "orders")
		missing := unique("missing")
		publisher := b.open(t, nil)
		want := failure{sinks.ScopeDestination, false, "unknown_exchange", missing}
		for round := range int64(2) {
			results := publish(t, publisher, []sinks.Message{
				message(exchange, "orders", "a", round*10+1),
				message(missing, "orders", "a", round*10+2),
				message(missing, "orders", "b", round*10+3),
				message(exchange, "orders", "a", round*10+4),
				message("", queue, "c", round*10+5),
			})
			for i, err := range results {
				if i == 1 || i == 2 {
					want.check(t, fmt.Sprint("message ", i), err)
				} else if err != nil {
					t.Errorf("message %d: %v", i, err)
				}
			}
		}
		if got := len(b.read(t, queue, 6, 10*time.Second)); got != 6 {
			t.Errorf("%d messages, want 6", got)
		}
	})
}

// TestVanishedExchange deletes an exchange behind a channel in use.
func TestVanishedExchange(t *testing.T) {
	orders(t, func(t *testing.T, b broker) {
		queue := b.queue(t, nil)
		exchange := b.exchange(t, "direct", queue, "orders")
		channel := b.channel(t)
		publisher := b.open(t, nil)
		batch := func(from int64) []sinks.Message {
			var all []sinks.Message
			for i := range int64(50) {
				all = append(all, message(exchange, "orders", fmt.Sprint(i%7), from+i), message("", queue, "x", from+i))
			}
			return all
		}
		if results := publish(t, publisher, batch(0)); errors.Join(results...) != nil {
			t.Fatal(errors.Join(results...))
		}
		if err := channel.ExchangeDelete(exchange, false, false); err != nil {
			t.Fatal(err)
		}
		want := failure{sinks.ScopeDestination, false, "unknown_exchange", exchange}
		results := publish(t, publisher, batch(100))
		for i := 1; i < len(results); i += 2 {
			if results[i] != nil {
				t.Errorf("default exchange: %v", results[i])
			}
		}
		want.check(t, "first of its key", results[0])
		if err := channel.ExchangeDeclare(exchange, "direct", true, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
		if err := channel.QueueBind(queue, "orders", exchange, false, nil); err != nil {
			t.Fatal(err)
		}
		if results := publish(t, publisher, batch(200)); errors.Join(results...) != nil {
			t.Error(errors.Join(results...))
		}
	})
}

func TestUnroutable(t *testing.T) {
	orders(t, func(t *testing.T, b broker) {
		queue := b.queue(t, nil)
		exchange := b.exchange(t, "direct", queue, "bound")
		nowhere := unique("nowhere")
		publisher := b.open(t, nil)
		var messages []sinks.Message
		for i := range int64(200) {
			messages = append(messages,
				message(exchange, "bound", "a", 4*i),
				message(exchange, nowhere, fmt.Sprint(i), 4*i+1),
				message("", nowhere, fmt.Sprint(i), 4*i+2),
				message("", queue, "b", 4*i+3))
		}
		results := publish(t, publisher, messages)
		for i, err := range results {
			switch i % 4 {
			case 1:
				failure{sinks.ScopeMessage, false, "unroutable", nowhere}.check(t, "named exchange", err)
			case 2:
				failure{sinks.ScopeMessage, false, "unroutable", nowhere}.check(t, "default exchange", err)
			default:
				if err != nil {
					t.Errorf("message %d: %v", i, err)
				}
			}
		}
		if got := len(b.read(t, queue, 400, 10*time.Second)); got != 400 {
			t.Errorf("%d messages, want 400", got)
		}
	})
}

// TestUnroutableDropped publishes without mandatory: the broker confirms what it
// drops.
func TestUnroutableDropped(t *testing.T) {
	b := newBroker(t)
	publisher := b.open(t, func(c *rabbitmq.Config, _ *sinks.Envelope) { c.Mandatory = false })
	if results := publish(t, publisher, []sinks.Message{message("", unique("nowhere"), "a", 1)}); results[0] != nil {
		t.Errorf("mandatory: false: %v", results[0])
	}
}

func TestNack(t *testing.T) {
	orders(t, func(t *testing.T, b broker) {
		full := b.queue(t, amqp.Table{"x-max-length": int64(3), "x-overflow": "reject-publish"})
		queue := b.queue(t, nil)
		publisher := b.open(t, nil)
		var messages []sinks.Message
		for i := range int64(10) {
			messages = append(messages, message("", full, "a", i), message("", queue, "a", i))
		}
		results := publish(t, publisher, messages)
		failed := false
		for i := 0; i < len(results); i += 2 {
			switch {
			case results[i] == nil && failed:
				t.Errorf("message %d is acknowledged behind a failure", i)
			case results[i] != nil && !failed:
				failed = true
				failure{sinks.ScopeDestination, false, "nack", full}.check(t, "first", results[i])
				if i != 6 {
					t.Errorf("message %d was refused first, want 6", i)
				}
			case results[i] != nil && !errors.Is(results[i], sinks.ErrSkipped):
				t.Errorf("message %d: %v, want skipped", i, results[i])
			}
			if results[i+1] != nil {
				t.Errorf("another queue: %v", results[i+1])
			}
		}
		if !failed {
			t.Error("nothing was refused")
		}
		b.wantSequences(t, full, 0, 1, 2)
		b.wantSequences(t, queue, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
		// Once there is room again, the rest goes out in order.
		if results := publish(t, publisher, []sinks.Message{messages[6], messages[8], messages[10]}); errors.Join(results...) != nil {
			t.Error(errors.Join(results...))
		}
		b.wantSequences(t, full, 3, 4, 5)
	})
}

// TestImpossible has messages that AMQP cannot carry between good ones, all in
// flight together: sent, they would close the connection.
func TestImpossible(t *testing.T) {
	orders(t, func(t *testing.T, b broker) {
		queue := b.queue(t, nil)
		long := strings.Repeat("x", 256)
		publisher := b.open(t, nil)
		var messages []sinks.Message
		for i := range int64(100) {
			messages = append(messages, message("", queue, "good", i))
		}
		bad := map[int]string{10: "too_long", 20: "too_long", 30: "too_long", 40: "headers_too_large", 50: "too_long"}
		for i := range bad {
			messages[i].Key = fmt.Appendf(nil, "bad-%d", i)
		}
		messages[10].Destination = long
		messages[20].Type = long
		messages[30].ContentType = long
		messages[40].Headers = []sinks.Header{{Name: "large", Value: strings.Repeat("v", 131072)}}
		messages[50].Headers = []sinks.Header{{Name: long, Value: "v"}}
		var want []int64
		for i, err := range publish(t, publisher, messages) {
			if reason, ok := bad[i]; ok {
				failure{sinks.ScopeMessage, true, reason, "bytes"}.check(t, fmt.Sprint("message ", i), err)
				continue
			}
			want = append(want, int64(i))
			if err != nil {
				t.Errorf("message %d: %v", i, err)
			}
		}
		b.wantSequences(t, queue, want...)
	})
}

// TestLargestHeaders fills a header frame to the last byte: the broker takes it.
func TestLargestHeaders(t *testing.T) {
	b := newBroker(t)
	queue := b.queue(t, nil)
	publisher := b.open(t, nil)
	m := message("", queue, "a", 1)
	size := 131072
	for ; size > 0; size-- {
		m.Headers = []sinks.Header{{Name: "large", Value: strings.Repeat("v", size)}}
		if publish(t, publisher, []sinks.Message{m})[0] == nil {
			break
		}
	}
	if got := b.read(t, queue, 1, 10*time.Second); len(got) != 1 || len(got[0].Headers["large"].(string)) != size || size < 130000 {
		t.Errorf("%d messages, %d bytes of header", len(got), size)
	}
}

// TestSameIdentityTwice publishes one message twice in one window, to a queue
// that exists and, by the same id, to one that does not.
func TestSameIdentityTwice(t *testing.T) {
	orders(t, func(t *testing.T, b broker) {
		queue, nowhere := b.queue(t, nil), unique("nowhere")
		publisher := b.open(t, nil)
		m := message("", queue, "a", 1)
		m.Key = nil
		lost := m
		lost.Destination = nowhere
		for i, err := range publish(t, publisher, []sinks.Message{m, lost, m, lost, m}) {
			if (err != nil) != (i%2 == 1) {
				t.Errorf("message %d: %v", i, err)
			}
		}
		b.wantSequences(t, queue, 1, 1, 1)
	})
}

func TestVerify(t *testing.T) {
	b := newBroker(t)
	queue := b.queue(t, nil)
	exchange := b.exchange(t, "topic", queue, "orders.#")
	publisher := b.open(t, nil)
	for _, d := range []sinks.Destination{{Name: queue}, {Exchange: exchange, Name: "orders.placed"}, {Exchange: exchange}, {}} {
		if err := publisher.Verify(t.Context(), d); err != nil {
			t.Errorf("%+v: %v", d, err)
		}
	}
	missing := unique("missing")
	failure{sinks.ScopeDestination, false, "unknown_queue", missing}.check(t, "queue", publisher.Verify(t.Context(), sinks.Destination{Name: missing}))
	failure{sinks.ScopeDestination, false, "unknown_exchange", missing}.check(t, "exchange", publisher.Verify(t.Context(), sinks.Destination{Exchange: missing, Name: "x"}))
	b.wantSequences(t, queue) // it left nothing behind
	internal := unique("internal")
	channel := b.channel(t)
	if err := channel.ExchangeDeclare(internal, "fanout", true, false, true, false, nil); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = channel.ExchangeDelete(internal, false, false) }()
	failure{sinks.ScopeDestination, false, "access_refused", internal}.check(t, "internal exchange", publisher.Verify(t.Context(), sinks.Destination{Exchange: internal, Name: "x"}))
	failure{sinks.ScopeDestination, false, "access_refused", internal}.check(t, "publish to an internal exchange", publish(t, publisher, []sinks.Message{message(internal, "x", "a", 1)})[0])
}
