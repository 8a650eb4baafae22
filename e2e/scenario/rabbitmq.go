package scenario

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/outbox"
)

// RabbitLog empties durable queues, which the default exchange feeds.
type RabbitLog struct {
	// url is where the log reaches the broker, sink where relays do.
	url, sink string
	queues    []string
	arguments amqp.Table

	mu sync.Mutex
	// neglected queues are not read.
	neglected map[string]bool
	records   []Record
	// seen are the messages among the records.
	seen map[outbox.UUID]bool
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
	return NewRabbitQueues(t, url, 1, arguments)
}

// NewRabbitQueues makes queues with new names, all with the arguments.
func NewRabbitQueues(t testing.TB, url string, queues int, arguments amqp.Table) *RabbitLog {
	t.Helper()
	r := &RabbitLog{url: url, sink: url, arguments: arguments, neglected: map[string]bool{}, seen: map[outbox.UUID]bool{}}
	for range queues {
		r.queues = append(r.queues, fmt.Sprintf("scenario-%08x", rand.Uint32()))
	}
	for _, queue := range r.queues {
		if err := r.Declare(queue); err != nil {
			t.Fatalf("declare queue %s: %v", queue, err)
		}
	}
	t.Cleanup(func() {
		for _, queue := range r.queues {
			// A broker of the test's own may be gone.
			_ = r.withChannel(func(channel *amqp.Channel) error {
				_, err := channel.QueueDelete(queue, false, false, false)
				return err
			})
		}
	})
	return r
}

// SinkURL has relays reach the broker at another address, that of a proxy.
func (r *RabbitLog) SinkURL(url string) { r.sink = url }

// Declare makes a queue of the log again that was deleted.
func (r *RabbitLog) Declare(queue string) error {
	return r.withChannel(func(channel *amqp.Channel) error {
		_, err := channel.QueueDeclare(queue, true, false, false, false, r.arguments)
		return err
	})
}

// Neglect has Records leave a queue as it is, as if its consumers were away.
func (r *RabbitLog) Neglect(queue string) { r.neglect(queue, true) }

// Tend ends Neglect.
func (r *RabbitLog) Tend(queue string) { r.neglect(queue, false) }

func (r *RabbitLog) neglect(queue string, neglected bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.neglected[queue] = neglected
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
func (r *RabbitLog) Sink() Config { return Config{"rabbitmq": Config{"url": r.sink}} }

// Topics implements Log: the queues' names.
func (r *RabbitLog) Topics() []string { return r.queues }

// Unconsumed is how many messages wait in the queues; what a consumer has
// received and not acknowledged is not among them.
func (r *RabbitLog) Unconsumed(context.Context, string) (n int64, err error) {
	for _, queue := range r.queues {
		waiting, err := r.Waiting(queue)
		if err != nil {
			return 0, err
		}
		n += waiting
	}
	return n, nil
}

// Waiting is how many messages wait in one queue.
func (r *RabbitLog) Waiting(queue string) (n int64, err error) {
	err = r.withChannel(func(channel *amqp.Channel) error {
		declared, err := channel.QueueDeclarePassive(queue, true, false, false, false, nil)
		n = int64(declared.Messages)
		return err
	})
	return n, err
}

// Records implements Log. A queue that does not exist holds nothing; what was
// read of it before stays in the log.
//
// What a broken connection interrupts is read again, in the same order. So is
// what was read already when its acknowledgement got lost, with the connection or
// in a broker that was killed. The broker says of both that they were delivered
// before, and what it says that of and the log has is no second message.
func (r *RabbitLog) Records(ctx context.Context) ([]Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.take(ctx)
}

// AllRecords is Records, and fails while a queue is neglected.
func (r *RabbitLog) AllRecords(ctx context.Context) ([]Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for queue, neglected := range r.neglected {
		if neglected {
			return nil, fmt.Errorf("queue %s is not read now", queue)
		}
	}
	return r.take(ctx)
}

// take is Records; the caller holds the lock.
func (r *RabbitLog) take(ctx context.Context) ([]Record, error) {
	for _, queue := range r.queues {
		if r.neglected[queue] {
			continue
		}
		err := r.withChannel(func(channel *amqp.Channel) error { return r.look(ctx, channel, queue) })
		if missing, ok := errors.AsType[*amqp.Error](err); ok && missing.Code == amqp.NotFound {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("queue %s: %w", queue, err)
		}
	}
	return r.records[:len(r.records):len(r.records)], nil
}

// look takes what waits in the queue now. It publishes nothing, so that it works
// with a queue that is full and a broker that blocks publishers.
func (r *RabbitLog) look(ctx context.Context, channel *amqp.Channel, queue string) error {
	declared, err := channel.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil || declared.Messages+declared.Consumers == 0 {
		return err
	}
	// Of a look that was interrupted: what it received is not back in its place
	// yet, and does not count.
	if declared.Consumers > 0 {
		return errors.New("it has another consumer")
	}
	if declared.Messages <= math.MaxUint16 {
		// What is not taken stays as it is, not even marked as delivered before.
		if err := channel.Qos(declared.Messages, 0, false); err != nil {
			return err
		}
	}
	deliveries, err := channel.ConsumeWithContext(ctx, queue, "", false, true, false, false, nil)
	if err != nil {
		return err
	}
	var fresh []amqp.Delivery
	for len(fresh) < declared.Messages {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case delivery, ok := <-deliveries:
			if !ok {
				return errors.New("the broker closed the channel")
			}
			fresh = append(fresh, delivery)
		}
	}
	if err := r.add(queue, fresh); err != nil {
		return err
	}
	return acknowledge(channel, queue, fresh[len(fresh)-1])
}

// add appends what a look took, all of it or nothing.
func (r *RabbitLog) add(queue string, deliveries []amqp.Delivery) error {
	records := make([]Record, 0, len(deliveries))
	for _, delivery := range deliveries {
		record, err := rabbitRecord(queue, len(r.records)+len(records), delivery)
		if err != nil {
			return err
		}
		if delivery.Redelivered && r.seen[record.MessageID] {
			continue
		}
		records = append(records, record)
	}
	for _, record := range records {
		if record.MessageID != (outbox.UUID{}) { // a style of headers may have none
			r.seen[record.MessageID] = true
		}
	}
	r.records = append(r.records, records...)
	return nil
}

// acknowledge acknowledges everything up to the last delivery. The broker
// answers a synchronous call after it, and only once it has handled it.
func acknowledge(channel *amqp.Channel, queue string, last amqp.Delivery) error {
	if err := last.Ack(true); err != nil {
		return err
	}
	_, err := channel.QueueDeclarePassive(queue, true, false, false, false, nil)
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
