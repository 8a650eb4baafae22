package main

import (
	"log/slog"
	"os"
	"time"

	"github.com/outboxrelay/relay/inbox/rabbitmq"
)

// A failed message is tried again soon, and until it succeeds.
const (
	backoffInitial = 5 * time.Millisecond
	backoffMax     = 50 * time.Millisecond
	maxAttempts    = 10_000
)

func (e *effects) consumer() (runner, error) {
	config := rabbitmq.Config{
		URLs: []string{e.rabbitmq}, Queue: e.topics[0], Inbox: e.inbox(), DB: e.db, Concurrency: e.concurrency,
		OnPoison: rabbitmq.DeadLetter{RoutingKey: e.topics[0] + "-dead"}, MaxAttempts: maxAttempts, Backoff: rabbitmq.Backoff{Initial: backoffInitial, Max: backoffMax},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
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
