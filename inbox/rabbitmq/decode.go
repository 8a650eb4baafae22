package rabbitmq

import (
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/internal/consume"
)

// decode returns the delivery as a message.
func (c *Consumer) decode(d *amqp.Delivery) *consume.Item {
	item := &consume.Item{Delivery: d, Message: inbox.Message{
		Topic: d.RoutingKey, Payload: d.Body,
		Source: inbox.QueueSource(c.config.Queue), ReceivedAt: time.Now(),
	}}
	item.Source.Exchange = d.Exchange
	if c.config.Retry == RetryRequeue {
		// Other consumers may have tried it and given it back.
		item.Before = deliveries(d)
	}
	c.config.Decoder.RabbitMQ(&item.Message, inbox.Properties{
		MessageID: d.MessageId, CorrelationID: d.CorrelationId, Type: d.Type,
		ContentType: d.ContentType, Timestamp: d.Timestamp,
	}, d.Headers)
	return item
}

// deliveries returns how often a quorum queue has delivered the message
// before, 0 for other queues.
func deliveries(d *amqp.Delivery) int {
	switch n := d.Headers["x-delivery-count"].(type) {
	case int64:
		return int(n)
	case int32:
		return int(n)
	case int16:
		return int(n)
	case byte:
		return int(n)
	}
	return 0
}
