package demo

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/e2e/proxy"
	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/outbox"
)

const (
	// exchange copies each message into both queues.
	exchange = "shop"
	// auditQueue is the auditor's.
	auditQueue = "audit"
)

// rabbitBroker audits one durable queue; the shipping service has another.
type rabbitBroker struct {
	server *servers.RabbitMQ
	// version is what the server says of itself to declare.
	version string
	// drained is closed when the auditor met the message of type end.
	drained chan struct{}
	once    sync.Once
	// proxies are between the shipping service's processes and the server.
	proxies []*proxy.Proxy
}

// end is the type of the message that Drain puts behind all others.
const end = "demo.end"

func (r *rabbitBroker) Name() string { return "RabbitMQ " + r.version }

func (r *rabbitBroker) Sink() map[string]any {
	return map[string]any{"rabbitmq": map[string]any{"url": r.server.URL("/"), "exchange": exchange}}
}

func (r *rabbitBroker) Close() error {
	for _, p := range r.proxies {
		_ = p.Close() // its connections are cut
	}
	return r.server.Close()
}

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
		if err := channel.ExchangeDeclare(exchange, amqp.ExchangeTopic, true, false, false, false, nil); err != nil {
			return err
		}
		for _, queue := range []string{auditQueue, shippingGroup} {
			if _, err := channel.QueueDeclare(queue, true, false, false, false, nil); err != nil {
				return err
			}
			if err := channel.QueueBind(queue, topic, exchange, false, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *rabbitBroker) Audit(ctx context.Context, arrivals *Arrivals) error {
	return r.withChannel(func(_ *amqp.Connection, channel *amqp.Channel) error {
		if err := channel.Qos(500, 0, false); err != nil {
			return err
		}
		deliveries, err := channel.Consume(auditQueue, "demo", false, false, false, false, nil)
		if err != nil {
			return err
		}
		for {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case delivery, ok := <-deliveries:
				if !ok {
					return errors.New("the broker closed the auditor's channel")
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
	arrivals.Add(Record{MessageID: id, Key: key, Where: fmt.Sprintf("queue %s delivery %d", auditQueue, delivery.DeliveryTag)})
	return delivery.Ack(false)
}

// Drain appends a last message and waits until the auditor met it.
func (r *rabbitBroker) Drain(ctx context.Context) error {
	err := r.withChannel(func(_ *amqp.Connection, channel *amqp.Channel) error {
		return channel.PublishWithContext(ctx, "", auditQueue, true, false, amqp.Publishing{Type: end})
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

// ShippingEnvironment implements broker: each process has a proxy of its own.
func (r *rabbitBroker) ShippingEnvironment(index int) ([]string, error) {
	parsed, err := url.Parse(r.server.URL("/"))
	if err != nil {
		return nil, err
	}
	for len(r.proxies) <= index {
		p, err := proxy.New(parsed.Host)
		if err != nil {
			return nil, err
		}
		r.proxies = append(r.proxies, p)
	}
	parsed.Host = r.proxies[index].Address()
	return []string{"RABBITMQ_URL=" + parsed.String()}, nil
}

// acknowledgements is the size of some of them, and more than a heartbeat's.
const acknowledgements = 100

// Strike implements broker: the network loses what the process says until it
// has said something, which it does after a commit.
func (r *rabbitBroker) Strike(ctx context.Context, index int, victim *program, _ waybills) error {
	ctx, cancel := context.WithTimeout(ctx, strikeLimit)
	defer cancel()
	line := r.proxies[index]
	lost := line.Swallowed(proxy.ToServer)
	line.Swallow(proxy.ToServer)
	_ = poll(ctx, func() (bool, error) { return line.Swallowed(proxy.ToServer)-lost >= acknowledgements, nil })
	victim.Kill()
	return line.Pass()
}

// Unshipped implements broker: messages that were not delivered.
func (r *rabbitBroker) Unshipped(context.Context) (waiting int64, err error) {
	err = r.withChannel(func(_ *amqp.Connection, channel *amqp.Channel) error {
		queue, err := channel.QueueDeclarePassive(shippingGroup, true, false, false, false, nil)
		waiting = int64(queue.Messages)
		return err
	})
	return waiting, err
}
