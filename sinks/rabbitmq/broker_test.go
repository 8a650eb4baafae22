package rabbitmq_test

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// broker is the real RabbitMQ that the tests talk to.
type broker struct {
	url   string
	order string
}

func newBroker(t testing.TB) broker {
	t.Helper()
	url := os.Getenv("RELAY_TEST_RABBITMQ_URL")
	if url == "" {
		t.Skip("needs RELAY_TEST_RABBITMQ_URL; `make test` provides it")
	}
	return broker{url: url, order: rabbitmq.OrderStrict}
}

// publisher opens a publisher with a changed default configuration.
func (b broker) publisher(t testing.TB, change func(*rabbitmq.Config, *sinks.Envelope)) *rabbitmq.Publisher {
	t.Helper()
	config := rabbitmq.Defaults()
	config.URL, config.Order = b.url, b.order
	envelope := sinks.Envelope{Style: sinks.StylePlain, Source: "/outbox"}
	if change != nil {
		change(&config, &envelope)
	}
	publisher, err := rabbitmq.New(config, envelope, slog.New(slog.NewTextHandler(testWriter{t}, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return publisher
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

// channel opens a channel of a test's own.
func (b broker) channel(t testing.TB) *amqp.Channel {
	t.Helper()
	connection, err := amqp.Dial(b.url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	channel, err := connection.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return channel
}

func unique(prefix string) string { return prefix + "-" + rand.Text()[:12] }

// queue creates a queue that vanishes with the test.
func (b broker) queue(t testing.TB, arguments amqp.Table) string {
	t.Helper()
	name := unique("test")
	channel := b.channel(t)
	if _, err := channel.QueueDeclare(name, true, false, false, false, arguments); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = channel.QueueDelete(name, false, false, false) })
	return name
}

// exchange creates an exchange that vanishes with the test and binds a queue.
func (b broker) exchange(t testing.TB, kind, queue, routingKey string) string {
	t.Helper()
	name := unique("test")
	channel := b.channel(t)
	if err := channel.ExchangeDeclare(name, kind, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = channel.ExchangeDelete(name, false, false) })
	if err := channel.QueueBind(queue, routingKey, name, false, nil); err != nil {
		t.Fatal(err)
	}
	return name
}

// read takes everything off a queue, at least n messages.
func (b broker) read(t testing.TB, queue string, n int, timeout time.Duration) []amqp.Delivery {
	t.Helper()
	channel := b.channel(t)
	defer channel.Close() // or it would take what comes later
	if state, err := channel.QueueDeclarePassive(queue, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	} else if state.Messages > n {
		n = state.Messages
	}
	messages, err := channel.Consume(queue, "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	var all []amqp.Delivery
	deadline := time.After(timeout)
	for len(all) < n {
		select {
		case m := <-messages:
			all = append(all, m)
		case <-deadline:
			t.Fatalf("queue %s: %d messages after %s, want %d", queue, len(all), timeout, n)
		}
	}
	// What else is there follows without a pause.
	for {
		select {
		case m := <-messages:
			all = append(all, m)
		case <-time.After(150 * time.Millisecond):
			return all
		}
	}
}

// message makes a message with a fresh id.
func message(exchange, routingKey, key string, sequence int64) sinks.Message {
	m := sinks.Message{
		Sequence: sequence, Topic: "orders", Exchange: exchange, Destination: routingKey,
		Key: []byte(key), Type: "OrderPlaced", ContentType: "application/json",
		Payload:   fmt.Appendf(nil, `{"n":%d}`, sequence),
		CreatedAt: time.Date(2026, 2, 3, 4, 5, 6, 789012000, time.UTC),
	}
	_, _ = rand.Read(m.ID[:])
	return m
}

// sequenceOf reads message-sequence back.
func sequenceOf(d amqp.Delivery) int64 {
	switch v := d.Headers["message-sequence"].(type) {
	case int64:
		return v
	case string:
		n, _ := strconv.ParseInt(v, 10, 64)
		return n
	}
	return -1
}
