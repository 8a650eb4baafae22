package rabbitmq_test

import (
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/inbox"
)

// A message of a producer with ids of its own comes by an exchange, and again
// straight into the queue, as a shovel or an operator moves it back from a
// dead-letter queue: its routing key is another one, and its effect the one it had.
func TestMovedMessageHasOneEffect(t *testing.T) {
	b := newBench(t)
	config := b.config()
	config.Decoder = inbox.Decoder{IDHeader: "cap-msg-id", Namespace: inbox.ID{1}}
	c := b.start(config)
	conn, err := amqp.Dial(b.url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	channel, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	exchange := b.queue + "-exchange"
	if err := channel.ExchangeDeclare(exchange, "direct", false, true, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := channel.QueueBind(b.queue, "orders.created", exchange, false, nil); err != nil {
		t.Fatal(err)
	}
	m := amqp.Publishing{Headers: amqp.Table{"cap-msg-id": "4981276351823", "message-sequence": int64(1)}, Body: []byte("x")}
	for _, to := range []struct{ exchange, key string }{{exchange, "orders.created"}, {"", b.queue}} {
		if err := channel.Publish(to.exchange, to.key, true, false, m); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "both deliveries", func() bool { s := c.Stats(); return s.Processed+s.Duplicates == 2 })
	if n := len(b.effects()); n != 1 {
		t.Errorf("%d effects, want one", n)
	}
	c.mustStop(t)
}
