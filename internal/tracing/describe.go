package tracing

import (
	"net"
	"net/url"
	"strconv"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/outboxrelay/relay/sinks/kafka"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// DatabaseOf says where the outbox is. Of several hosts nobody knows
// which one a connection is to.
func DatabaseOf(c *pgx.ConnConfig) []attribute.KeyValue {
	about := []attribute.KeyValue{semconv.DBNamespace(c.Database)}
	for _, fallback := range c.Fallbacks { // without TLS, for example, or another host
		if fallback.Host != c.Host || fallback.Port != c.Port {
			return about
		}
	}
	return append(about, semconv.ServerAddress(c.Host), semconv.ServerPort(int(c.Port)))
}

// KafkaSink describes a Kafka sink; of several brokers no one has all
// partitions.
func KafkaSink(c *kafka.Config) (sink Sink) {
	if c.ClientID != "" {
		sink.Attributes = append(sink.Attributes, semconv.MessagingClientID(c.ClientID))
	}
	if len(c.Brokers) == 1 {
		if host, port, err := net.SplitHostPort(c.Brokers[0]); err == nil {
			sink.Attributes = append(sink.Attributes, server(host, port)...)
		}
	}
	return sink
}

// RabbitMQSink describes a RabbitMQ sink.
func RabbitMQSink(c *rabbitmq.Config) Sink {
	sink := Sink{RabbitMQ: true, Exchange: c.Exchange}
	// The sink found it to be right, or the relay would not run.
	if u, err := url.Parse(c.URL); err == nil && u.Hostname() != "" {
		port := u.Port()
		switch {
		case port != "":
		case u.Scheme == "amqps":
			port = "5671"
		default:
			port = "5672"
		}
		sink.Attributes = server(u.Hostname(), port)
	}
	return sink
}

func server(host, port string) []attribute.KeyValue {
	about := []attribute.KeyValue{semconv.ServerAddress(host)}
	if number, err := strconv.Atoi(port); err == nil {
		about = append(about, semconv.ServerPort(number))
	}
	return about
}
