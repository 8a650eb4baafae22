package main

import (
	"net"
	"net/url"
	"strconv"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/tracing"
	"github.com/outboxrelay/relay/internal/tracing/otlp"
	"github.com/outboxrelay/relay/sinks/kafka"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// newTracer makes the tracer of batches, nil where the environment asks for no
// traces.
func newTracer(spans *otlp.Provider, c *config.Config, database *pgx.ConnConfig) *tracing.Tracer {
	options := tracing.Options{
		Tracer: spans.Tracer(), MaxLinks: spans.MaxLinks(),
		Table: c.Outbox.Schema + "." + c.Outbox.Table, Database: databaseAttributes(database),
		Sinks: make(map[string]tracing.Sink, len(c.Sinks)),
	}
	for name, sink := range c.Sinks {
		if sink.Kafka != nil {
			options.Sinks[name] = kafkaSink(sink.Kafka)
		} else {
			options.Sinks[name] = rabbitSink(sink.RabbitMQ)
		}
	}
	return tracing.New(options)
}

// databaseAttributes say where the outbox is. Of several hosts nobody knows
// which one a connection is to.
func databaseAttributes(c *pgx.ConnConfig) []attribute.KeyValue {
	about := []attribute.KeyValue{semconv.DBNamespace(c.Database)}
	for _, fallback := range c.Fallbacks { // without TLS, for example, or another host
		if fallback.Host != c.Host || fallback.Port != c.Port {
			return about
		}
	}
	return append(about, semconv.ServerAddress(c.Host), semconv.ServerPort(int(c.Port)))
}

// kafkaSink describes a Kafka sink; of several brokers no one has all
// partitions.
func kafkaSink(c *kafka.Config) (sink tracing.Sink) {
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

func rabbitSink(c *rabbitmq.Config) tracing.Sink {
	sink := tracing.Sink{RabbitMQ: true, Exchange: c.Exchange}
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
