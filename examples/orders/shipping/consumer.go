package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/kafka"
	"github.com/outboxrelay/relay/inbox/rabbitmq"
)

// consumer is of either broker.
type consumer struct {
	// Run consumes until its context ends.
	Run func(context.Context) error
	// duplicates is how many messages the inbox has refused.
	duplicates func() int64
}

// newConsumer is for the broker that is named. The inbox remembers which messages
// were processed; all instances of the service share its name. A service of yours has one of
// the two functions below.
func newConsumer(service *Service, box *inbox.Inbox, brokers, url string, sessionTimeout time.Duration, log *slog.Logger) (*consumer, error) {
	switch {
	case brokers != "" && url == "":
		return newKafkaConsumer(service, box, strings.Split(brokers, ","), sessionTimeout, log)
	case url != "" && brokers == "":
		return newRabbitMQConsumer(service, box, url, log)
	}
	return nil, errors.New("name one broker: set KAFKA_BROKERS or RABBITMQ_URL")
}

func newKafkaConsumer(service *Service, box *inbox.Inbox, brokers []string, sessionTimeout time.Duration, log *slog.Logger) (*consumer, error) {
	c, err := kafka.New(kafka.Config{
		Brokers:           brokers,
		Group:             "shipping",
		Topics:            []string{"orders"},
		Inbox:             box,
		DB:                service.pool,
		Handler:           service.Handle,
		SessionTimeout:    sessionTimeout,
		HeartbeatInterval: sessionTimeout / 4,
		Logger:            log,
	})
	if err != nil {
		return nil, err
	}
	return &consumer{c.Run, func() int64 { return c.Stats().Duplicates }}, nil
}

func newRabbitMQConsumer(service *Service, box *inbox.Inbox, url string, log *slog.Logger) (*consumer, error) {
	c, err := rabbitmq.New(rabbitmq.Config{
		URLs:  []string{url},
		Queue: "shipping",
		// What the queue is bound to is known to who runs the order service.
		Declare: func(channel *amqp.Channel) error {
			_, err := channel.QueueDeclare("shipping", true, false, false, false, nil)
			return err
		},
		Inbox:   box,
		DB:      service.pool,
		Handler: service.Handle,
		Logger:  log,
	})
	if err != nil {
		return nil, err
	}
	return &consumer{c.Run, func() int64 { return c.Stats().Duplicates }}, nil
}
