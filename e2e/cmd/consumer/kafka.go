package main

import (
	"context"
	"strings"
	"time"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/kafka"
)

// sessionTimeout is how long a group waits for a killed member. The test's
// brokers allow it to be so short (group.min.session.timeout.ms).
const sessionTimeout = 1500 * time.Millisecond

func consumeKafka(ctx context.Context, o options, db inbox.Beginner) error {
	config := kafka.Config{
		Brokers: strings.Split(o.url, ","), Group: o.name, Topics: []string{o.source},
		Inbox: &inbox.Inbox{Consumer: o.name}, DB: db,
		SessionTimeout: sessionTimeout, HeartbeatInterval: sessionTimeout / 5,
		CommitInterval: 200 * time.Millisecond,
		Backoff:        kafka.Backoff{Initial: 10 * time.Millisecond, Max: 200 * time.Millisecond},
	}
	if o.batch > 0 {
		config.BatchHandler, config.BatchSize = effects, o.batch
	} else {
		config.Handler = effect
	}
	consumer, err := kafka.New(config)
	if err != nil {
		return err
	}
	return consumer.Run(ctx)
}
