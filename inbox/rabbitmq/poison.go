package rabbitmq

import (
	"cmp"
	"context"
	"fmt"
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
		return fmt.Errorf("OnPoison: %T is not known", poison)
	}
}
