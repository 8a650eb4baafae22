package rabbitmq_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// patience is how long a test waits for anything that must happen.
const patience = 90 * time.Second

// broker is the real RabbitMQ that the tests talk to.
type broker struct{ url string }

func newBroker(t testing.TB) broker {
	t.Helper()
	url := os.Getenv("RELAY_TEST_RABBITMQ_URL")
	if url == "" {
		t.Skip("needs RELAY_TEST_RABBITMQ_URL; `make test` provides it")
	}
	return broker{url: url}
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
	name := unique("inbox-test")
	channel := b.channel(t)
	if _, err := channel.QueueDeclare(name, true, false, false, false, arguments); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = channel.QueueDelete(name, false, false, false) })
	return name
}

// event is a message as the relay publishes it.
func event(n int, key string) amqp.Publishing {
	headers := amqp.Table{"message-sequence": int64(n)}
	if key != "" {
		headers["message-key"] = key
	}
	return amqp.Publishing{
		MessageId: fmt.Sprintf("00000000-0000-7000-8000-%012d", n), Type: "OrderPlaced",
		ContentType: "application/json", Timestamp: time.Unix(1_790_000_000, 0), DeliveryMode: amqp.Persistent,
		Headers: headers, Body: fmt.Appendf(nil, `{"n":%d}`, n),
	}
}

// publish puts messages into a queue and waits until they are there.
func (b broker) publish(t testing.TB, queue string, messages ...amqp.Publishing) {
	t.Helper()
	channel := b.channel(t)
	if err := channel.Confirm(false); err != nil {
		t.Fatal(err)
	}
	var all []*amqp.DeferredConfirmation
	for _, m := range messages {
		confirm, err := channel.PublishWithDeferredConfirm("", queue, true, false, m)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, confirm)
	}
	for _, confirm := range all {
		if !confirm.Wait() {
			t.Fatal("a message was not confirmed")
		}
	}
	_ = channel.Close()
}

// ready returns the number of messages that wait in a queue.
func (b broker) ready(t testing.TB, queue string) int {
	t.Helper()
	channel := b.channel(t)
	defer channel.Close()
	state, err := channel.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	return state.Messages
}

// take takes n messages off a queue, and fails if there are not so many in
// time.
func (b broker) take(t testing.TB, queue string, n int) []amqp.Delivery {
	t.Helper()
	channel := b.channel(t)
	defer channel.Close()
	var all []amqp.Delivery
	await(t, fmt.Sprintf("%d messages in queue %s", n, queue), func() bool {
		for len(all) < n {
			d, ok, err := channel.Get(queue, true)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				return false
			}
			all = append(all, d)
		}
		return true
	})
	return all
}

// await polls until the condition holds.
func await(t testing.TB, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for !condition() {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}
