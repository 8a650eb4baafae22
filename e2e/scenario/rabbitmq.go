package scenario

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/e2e/servers"
)

// endType is the type of the message that marks how far a look goes.
const endType = "scenario.end"

// RabbitLog empties one durable queue, which the default exchange feeds.
type RabbitLog struct {
	url, queue string

	mu      sync.Mutex
	records []Record
}

// NewRabbitLog makes a queue on the shared RabbitMQ. It is removed when the
// test ends.
func NewRabbitLog(t testing.TB) *RabbitLog {
	t.Helper()
	return NewRabbitQueue(t, servers.FromEnvironment().RabbitMQURL, nil)
}

// NewRabbitQueue makes a queue with a new name and the arguments.
func NewRabbitQueue(t testing.TB, url string, arguments amqp.Table) *RabbitLog {
	t.Helper()
	r := &RabbitLog{url: url, queue: fmt.Sprintf("scenario-%08x", rand.Uint32())}
	err := r.withChannel(func(channel *amqp.Channel) error {
		_, err := channel.QueueDeclare(r.queue, true, false, false, false, arguments)
		return err
	})
	if err != nil {
		t.Fatalf("declare queue %s: %v", r.queue, err)
	}
	t.Cleanup(func() {
		// A broker of the test's own may be gone.
		_ = r.withChannel(func(channel *amqp.Channel) error {
			_, err := channel.QueueDelete(r.queue, false, false, false)
			return err
		})
	})
	return r
}

func (r *RabbitLog) withChannel(f func(*amqp.Channel) error) error {
	connection, err := amqp.Dial(r.url)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	channel, err := connection.Channel()
	if err != nil {
		return err
	}
	return f(channel)
}

// Sink implements Log.
func (r *RabbitLog) Sink() Config { return Config{"rabbitmq": Config{"url": r.url}} }

// Topics implements Log: the queue's name.
func (r *RabbitLog) Topics() []string { return []string{r.queue} }

// Unconsumed is how many messages wait in the queue; what a consumer has
// received and not acknowledged is not among them.
func (r *RabbitLog) Unconsumed(context.Context, string) (n int64, err error) {
	err = r.withChannel(func(channel *amqp.Channel) error {
		queue, err := channel.QueueDeclarePassive(r.queue, true, false, false, false, nil)
		n = int64(queue.Messages)
		return err
	})
	return n, err
}

// Records implements Log. It acknowledges only once it has read to the end, so
// that what a broken connection interrupts is read again, in the same order.
func (r *RabbitLog) Records(ctx context.Context) ([]Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var fresh []Record
	err := r.withChannel(func(channel *amqp.Channel) (err error) {
		fresh, err = r.read(ctx, channel)
		return err
	})
	if err != nil {
		return nil, err
	}
	r.records = append(r.records, fresh...)
	return r.records[:len(r.records):len(r.records)], nil
}

func (r *RabbitLog) read(ctx context.Context, channel *amqp.Channel) ([]Record, error) {
	mark := fmt.Sprintf("%016x", rand.Uint64())
	end := amqp.Publishing{Type: endType, MessageId: mark, DeliveryMode: amqp.Persistent}
	if err := channel.PublishWithContext(ctx, "", r.queue, true, false, end); err != nil {
		return nil, err
	}
	deliveries, err := channel.ConsumeWithContext(ctx, r.queue, "", false, true, false, false, nil)
	if err != nil {
		return nil, err
	}
	var fresh []Record
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case delivery, ok := <-deliveries:
			switch {
			case !ok:
				return nil, errors.New("the broker closed the channel")
			case delivery.Type == endType && delivery.MessageId == mark:
				return fresh, r.acknowledge(channel, delivery)
			case delivery.Type == endType: // of a look that was interrupted
			default:
				record, err := rabbitRecord(r.queue, len(r.records)+len(fresh), delivery)
				if err != nil {
					return nil, err
				}
				fresh = append(fresh, record)
			}
		}
	}
}

// acknowledge acknowledges everything up to the last delivery. The broker
// answers a synchronous call after it, and only once it has handled it.
func (r *RabbitLog) acknowledge(channel *amqp.Channel, last amqp.Delivery) error {
	if err := last.Ack(true); err != nil {
		return err
	}
	_, err := channel.QueueDeclarePassive(r.queue, true, false, false, false, nil)
	return err
}

func rabbitRecord(queue string, index int, delivery amqp.Delivery) (Record, error) {
	record := Record{
		Topic: queue, Payload: delivery.Body, Headers: map[string]string{},
		Where: fmt.Sprintf("queue %s #%d", queue, index),
	}
	for name, value := range delivery.Headers {
		record.Headers[name] = fmt.Sprint(value)
	}
	record.Key, record.Keyed = record.Headers["message-key"], record.Headers["message-key"] != "" || delivery.Headers["message-key"] != nil
	if delivery.MessageId != "" {
		record.Headers["message-id"] = delivery.MessageId
	}
	return record, record.identify()
}
