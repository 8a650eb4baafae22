package main

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/kafka"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// publishers are the sinks by their names in the configuration.
type publishers map[string]sinks.Publisher

// newPublishers makes all sinks; none dials yet. The caller closes them.
func newPublishers(c *config.Config, logger *slog.Logger) (publishers, error) {
	envelope := sinks.Envelope{Style: c.Headers, Source: c.Source}
	made := publishers{}
	for name, sink := range c.Sinks {
		publisher, err := newPublisher(sink, envelope, logger.With("sink", name))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("sinks.%s: %w", name, err), made.close())
		}
		made[name] = publisher
	}
	return made, nil
}

func newPublisher(sink config.Sink, envelope sinks.Envelope, logger *slog.Logger) (sinks.Publisher, error) {
	if sink.Kafka != nil {
		return kafka.New(*sink.Kafka, envelope, logger)
	}
	return rabbitmq.New(*sink.RabbitMQ, envelope, logger)
}

func (p publishers) close() error {
	var all error
	for _, publisher := range p {
		all = errors.Join(all, publisher.Close())
	}
	return all
}
