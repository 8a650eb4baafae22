package rabbitmq

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// outagePatience is how long messages wait in place for a database that is
// away. Then they are given back: the broker takes them back by itself after
// 30 minutes, quorum queues count that, and drop a message that was delivered
// too often.
const outagePatience = time.Minute

// errDatabaseAway ends a session.
var errDatabaseAway = errors.New("the database is away for longer than the messages should wait here")

// awaitDatabase returns when the database answers, or ctx has ended.
func (c *Consumer) awaitDatabase(ctx context.Context) {
	for n := 1; c.runner.Ping(ctx) != nil; n++ {
		if !sleep(ctx, c.config.Backoff.pause(n, rand.Float64())) {
			return
		}
	}
}
