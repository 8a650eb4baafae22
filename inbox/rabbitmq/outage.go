package rabbitmq

import (
	"context"
	"time"

	"github.com/outboxrelay/relay/inbox/internal/consume"
)

// outagePatience is how long messages wait in place for a database that is
// away. Then they are given back: the broker takes them back by itself after
// 30 minutes, quorum queues count that, and drop a message that was delivered
// too often.
const outagePatience = time.Minute

// awaitDatabase returns when the database answers, or ctx has ended.
func (c *Consumer) awaitDatabase(ctx context.Context) {
	for n := 1; c.runner.Ping(ctx) != nil; n++ {
		if !consume.Sleep(ctx, c.config.Backoff.Pause(n)) {
			return
		}
	}
}
