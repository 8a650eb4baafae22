package main

import (
	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/tracing"
	"github.com/outboxrelay/relay/internal/tracing/otlp"
)

// newTracer makes the tracer of batches, nil where the environment asks for no
// traces.
func newTracer(spans *otlp.Provider, c *config.Config, database *pgx.ConnConfig) *tracing.Tracer {
	options := tracing.Options{
		Tracer: spans.Tracer(), MaxLinks: spans.MaxLinks(),
		Table: c.Outbox.Schema + "." + c.Outbox.Table, Database: tracing.DatabaseOf(database),
		Sinks: make(map[string]tracing.Sink, len(c.Sinks)),
	}
	for name, sink := range c.Sinks {
		if sink.Kafka != nil {
			options.Sinks[name] = tracing.KafkaSink(sink.Kafka)
		} else {
			options.Sinks[name] = tracing.RabbitMQSink(sink.RabbitMQ)
		}
	}
	return tracing.New(options)
}
