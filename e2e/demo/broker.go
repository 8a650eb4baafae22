package demo

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/outboxrelay/relay/e2e/servers"
)

const (
	// topic is where the order service's events go, at every broker.
	topic = "orders"
	// shippingGroup is the name by which the shipping service consumes: its
	// consumer group, or its queue.
	shippingGroup = "shipping"
)

// broker is the demo's message broker and the auditor that reads all of it.
type broker interface {
	// Name is the product and version.
	Name() string
	// Sink is the broker as an entry of the relay's configuration.
	Sink() map[string]any
	// Audit adds everything that arrives, until ctx ends.
	Audit(ctx context.Context, arrivals *Arrivals) error
	// Drain returns when Audit has added all that the broker holds. Nobody
	// publishes any more.
	Drain(ctx context.Context) error
	// ShippingEnvironment tells the shipping service's process with the index
	// where to consume.
	ShippingEnvironment(index int) ([]string, error)
	// Strike kills that process, at a moment at which its database has
	// committed what the broker has not heard of. It kills it all the same when
	// there is no such moment for a while.
	Strike(ctx context.Context, index int, victim *program, depot waybills) error
	// Unshipped is how many messages wait for the shipping service. What it
	// has received and not acknowledged may count or not.
	Unshipped(ctx context.Context) (int64, error)
	io.Closer
}

// strikeLimit is how long Strike looks for its moment.
const strikeLimit = 5 * time.Second

// Sinks are the values of Options.Sink.
func Sinks() []string { return []string{"kafka", "rabbitmq"} }

// startBroker starts the server and makes what the events go to.
func startBroker(ctx context.Context, sink string) (broker, error) {
	switch sink {
	case "kafka":
		server, err := servers.StartKafka(ctx, servers.KafkaOptions{
			Properties: map[string]string{"group.min.session.timeout.ms": strconv.FormatInt(sessionTimeout.Milliseconds(), 10)},
		})
		if err != nil {
			return nil, err
		}
		b := newKafkaBroker(server)
		if err := server.CreateTopic(ctx, topic, len(b.next), nil); err != nil {
			_ = server.Close()
			return nil, err
		}
		return b, nil
	case "rabbitmq":
		server, err := servers.StartRabbitMQ(ctx, servers.RabbitMQOptions{})
		if err != nil {
			return nil, err
		}
		b := &rabbitBroker{server: server, drained: make(chan struct{})}
		if err := b.declare(); err != nil {
			_ = server.Close()
			return nil, err
		}
		return b, nil
	}
	return nil, fmt.Errorf("sink %q: must be one of %s", sink, strings.Join(Sinks(), ", "))
}
