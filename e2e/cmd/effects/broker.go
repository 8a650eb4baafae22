package main

import (
	"log/slog"
	"os"
	"time"

	"github.com/outboxrelay/relay/inbox/kafka"
	"github.com/outboxrelay/relay/inbox/rabbitmq"
)

const (
	// A failed message is tried again soon, and until it succeeds.
	backoffInitial = 5 * time.Millisecond
	backoffMax     = 50 * time.Millisecond
	maxAttempts    = 10_000
	// sessionTimeout is how long a Kafka group waits for a dead member.
	sessionTimeout = 1500 * time.Millisecond
	// commitInterval is so short that offsets are committed between crashes.
	commitInterval = 200 * time.Millisecond
)

func (e *effects) consumer() (runner, error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if len(e.kafka) > 0 {
		return e.kafkaConsumer(log)
	}
	return e.rabbitMQConsumer(log)
}

func (e *effects) kafkaConsumer(log *slog.Logger) (runner, error) {
	config := kafka.Config{
		Brokers: e.kafka, Group: e.name, Topics: e.topics, Inbox: e.inbox(), DB: e.db,
		MaxAttempts: maxAttempts, Backoff: kafka.Backoff{Initial: backoffInitial, Max: backoffMax},
		SessionTimeout: sessionTimeout, HeartbeatInterval: sessionTimeout / 6, CommitInterval: commitInterval, Logger: log,
	}
	if e.batch > 0 {
		config.BatchHandler, config.BatchSize = e.handleBatch, e.batch
	} else {
		config.Handler = e.handle
	}
	return kafka.New(config)
}

func (e *effects) rabbitMQConsumer(log *slog.Logger) (runner, error) {
	config := rabbitmq.Config{
		URLs: []string{e.rabbitmq}, Queue: e.topics[0], Inbox: e.inbox(), DB: e.db, Concurrency: e.concurrency,
		MaxAttempts: maxAttempts, Backoff: rabbitmq.Backoff{Initial: backoffInitial, Max: backoffMax}, Logger: log,
	}
	if e.batch > 0 {
		config.BatchHandler, config.BatchSize = e.handleBatch, e.batch
	} else {
		config.Handler = e.handle
	}
	if e.requeue {
		config.Retry = rabbitmq.RetryRequeue
	}
	return rabbitmq.New(config)
}
