package demo

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/outboxrelay/relay/e2e/servers"
)

// topic is where the order service's events go, at every broker.
const topic = "orders"

// broker is the demo's message broker and consumer.
type broker interface {
	// Name is the product and version.
	Name() string
	// Sink is the broker as an entry of the relay's configuration.
	Sink() map[string]any
	// Consume adds everything that arrives, until ctx ends.
	Consume(ctx context.Context, arrivals *Arrivals) error
	// Drain returns when Consume has added all that the broker holds. Nobody
	// publishes any more.
	Drain(ctx context.Context) error
	io.Closer
}

// Sinks are the values of Options.Sink.
func Sinks() []string { return []string{"kafka", "rabbitmq"} }

// startBroker starts the server and makes what the events go to.
func startBroker(ctx context.Context, sink string) (broker, error) {
	switch sink {
	case "kafka":
		server, err := servers.StartKafka(ctx, servers.KafkaOptions{})
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
