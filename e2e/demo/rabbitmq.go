package demo

import (
	"context"
	"errors"
	"fmt"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/outbox"
)

// rabbitBroker consumes one durable queue, which the default exchange feeds.
type rabbitBroker struct {
	server *servers.RabbitMQ
	// version is what the server says of itself to declare.
	version string
	// drained is closed when the consumer met the message of type end.
	drained chan struct{}
	once    sync.Once
}

// end is the type of the message that Drain puts behind all others.
const end = "demo.end"

func (r *rabbitBroker) Name() string { return "RabbitMQ " + r.version }

func (r *rabbitBroker) Sink() map[string]any {
	return map[string]any{"rabbitmq": map[string]any{"url": r.server.URL("/")}}
}

func (r *rabbitBroker) Close() error { return r.server.Close() }

// withChannel calls f with a channel on a connection of its own.
func (r *rabbitBroker) withChannel(f func(*amqp.Connection, *amqp.Channel) error) error {
	connection, err := amqp.Dial(r.server.URL("/"))
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	channel, err := connection.Channel()
	if err != nil {
		return err
	}
	return f(connection, channel)
}

func (r *rabbitBroker) declare() error {
	return r.withChannel(func(connection *amqp.Connection, channel *amqp.Channel) error {
		r.version, _ = connection.Properties["version"].(string)
		_, err := channel.QueueDeclare(topic, true, false, false, false, nil)
		return err
	})
}

func (r *rabbitBroker) Consume(ctx context.Context, arrivals *Arrivals) error {
	return r.withChannel(func(_ *amqp.Connection, channel *amqp.Channel) error {
		if err := channel.Qos(500, 0, false); err != nil {
			return err
		}
		deliveries, err := channel.Consume(topic, "demo", false, false, false, false, nil)
		if err != nil {
			return err
		}
		for {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case delivery, ok := <-deliveries:
				if !ok {
					return errors.New("the broker closed the consumer's channel")
				}
				if err := r.receive(delivery, arrivals); err != nil {
					return err
				}
			}
		}
	})
}

func (r *rabbitBroker) receive(delivery amqp.Delivery, arrivals *Arrivals) error {
	if delivery.Type == end {
		r.once.Do(func() { close(r.drained) })
		return delivery.Ack(false)
	}
	id, err := outbox.ParseUUID(delivery.MessageId)
	if err != nil {
		return err
	}
	key, _ := delivery.Headers["message-key"].(string)
	arrivals.Add(Record{MessageID: id, Key: key, Where: fmt.Sprintf("queue %s delivery %d", topic, delivery.DeliveryTag)})
	return delivery.Ack(false)
}

// Drain appends a last message and waits until the consumer met it.
func (r *rabbitBroker) Drain(ctx context.Context) error {
	err := r.withChannel(func(_ *amqp.Connection, channel *amqp.Channel) error {
		return channel.PublishWithContext(ctx, "", topic, true, false, amqp.Publishing{Type: end})
	})
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-r.drained:
		return nil
	}
}
