package main

import (
	"context"
	"strings"
	"time"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/kafka"
)

func consumeKafka(ctx context.Context, o options, db inbox.Beginner) error {
	config := kafka.Config{
		Brokers: strings.Split(o.url, ","), Group: o.name, Topics: []string{o.source},
		Inbox: o.inbox(), DB: db,
		SessionTimeout: o.session, HeartbeatInterval: o.session / 5,
		Concurrency:    o.concurrency,
		CommitInterval: 200 * time.Millisecond, MaxAttempts: maxAttempts,
		Backoff: kafka.Backoff{Initial: 10 * time.Millisecond, Max: 200 * time.Millisecond},
	}
	if o.batch > 0 {
		config.BatchHandler, config.BatchSize = o.effects, o.batch
	} else {
		config.Handler = o.effect
	}
	consumer, err := kafka.New(config)
	if err != nil {
		return err
	}
	return consumer.Run(ctx)
}
