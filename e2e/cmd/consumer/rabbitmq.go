package main

import (
	"context"
	"time"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/rabbitmq"
)

func consumeRabbitMQ(ctx context.Context, o options, db inbox.Beginner) error {
	config := rabbitmq.Config{
		URLs: []string{o.url}, Queue: o.source,
		Inbox: o.inbox(), DB: db,
		Concurrency: o.concurrency, Prefetch: 50, MaxAttempts: maxAttempts,
		Backoff: rabbitmq.Backoff{Initial: 10 * time.Millisecond, Max: 200 * time.Millisecond},
	}
	if o.batch > 0 {
		config.BatchHandler, config.BatchSize = o.effects, o.batch
	} else {
		config.Handler = o.effect
	}
	consumer, err := rabbitmq.New(config)
	if err != nil {
		return err
	}
	return consumer.Run(ctx)
}
