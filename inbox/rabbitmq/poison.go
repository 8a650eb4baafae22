package rabbitmq

import (
	"cmp"
	"context"
	"time"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/parked"
)

// handOver puts a message aside that cannot be processed. It returns nil when
// the message is safe there.
func (c *Consumer) handOver(ctx context.Context, t *task, f failure) error {
	switch poison := c.config.OnPoison.(type) {
	case DeadLetter:
		var p *publisher
		select {
		case p = <-c.publisher:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		defer func() { c.publisher <- p }()
		return p.publish(ctx, poison.Exchange, cmp.Or(poison.RoutingKey, t.delivery.RoutingKey), deadLetter(&t.delivery, f))
	default:
		ctx, cancel := context.WithTimeout(ctx, parkTimeout)
		defer cancel()
		return c.park(ctx, t, f)
	}
}

// aside is where handOver puts messages.
func (c *Consumer) aside() inbox.Aside {
	if _, ok := c.config.OnPoison.(DeadLetter); ok {
		return inbox.DeadLettered
	}
	return inbox.Parked
}

// parkTimeout bounds one attempt to park a message.
const parkTimeout = 30 * time.Second

func (c *Consumer) park(ctx context.Context, t *task, f failure) error {
	// The message was identified before. IDOf may be why it is here.
	box := *c.config.Inbox
	box.IDOf = nil
	message := t.message
	message.ID = t.id
	return parked.Lot{Inbox: &box}.Park(ctx, c.config.DB, message, f.attempts, f.err)
}
