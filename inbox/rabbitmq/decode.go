package rabbitmq

import (
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/inbox"
)

// decode returns the delivery as a message, and the id that the inbox gives
// it. The error says that it has none.
func (c *Consumer) decode(d *amqp.Delivery) (m inbox.Message, id inbox.ID, err error) {
	m = inbox.Message{
		Topic: d.RoutingKey, Payload: d.Body,
		Source: inbox.QueueSource(c.config.Queue), ReceivedAt: time.Now(),
	}
	m.Source.Exchange = d.Exchange
	c.config.Decoder.RabbitMQ(&m, inbox.Properties{
		MessageID: d.MessageId, CorrelationID: d.CorrelationId, Type: d.Type,
		ContentType: d.ContentType, Timestamp: d.Timestamp,
	}, d.Headers)
	id, err = c.runner.Identify(m)
	return m, id, err
}
