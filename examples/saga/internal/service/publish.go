package service

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/outbox"
)

// writer wakes the relay with every commit.
var writer = &outbox.Writer{Notify: true}

// Publish writes an order's event to the outbox, in the transaction of what it
// tells. In a handler the context makes it an answer: it has the saga's
// correlation id, the id of the message that is handled, and the trace.
func Publish(ctx context.Context, tx pgx.Tx, topic, orderID, eventType string, event any) error {
	_, err := writer.Insert(ctx, tx, outbox.Message{Topic: topic, Key: orderID, Type: eventType, JSON: event})
	return err
}
