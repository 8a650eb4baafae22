package main

import (
	"context"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/rabbitmq"
)

func consumeRabbitMQ(ctx context.Context, o options, db inbox.Beginner) error {
	config := rabbitmq.Config{
		URLs: []string{o.url}, Queue: o.source,
		Inbox: &inbox.Inbox{Consumer: o.name}, DB: db,
		Concurrency: o.concurrency, Prefetch: 50,
	}
	if o.batch > 0 {
		config.BatchHandler, config.BatchSize = effects, o.batch
	} else {
		config.Handler = effect
	}
	consumer, err := rabbitmq.New(config)
	if err != nil {
		return err
	}
	return consumer.Run(ctx)
}
