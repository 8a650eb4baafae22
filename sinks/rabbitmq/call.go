package rabbitmq

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

// blockGrace is how long a call waits for confirms after the broker began to
// block: alarms can be over soon, and what is sent again is a duplicate.
const blockGrace = 2 * time.Second

// state is where a message of a call is.
type state uint8

const (
	waiting state = iota
	inFlight
	settled
)

// breakpoint is the earliest failure of a chain that is known: nothing behind
// it is sent any more.
type breakpoint struct {
	index int32
	err   error // what the rest fails with, nil when nothing has failed
}

// none stands for no chain and no successor.
const none = -1

// call is one Publish. Its goroutine sends and settles; channels report outcomes
// with complete.
type call struct {
	connection *connection
	messages   []sinks.Message
	mandatory  bool
	encoder    encoder

	results   []error
	states    []state
	unsettled int

	parts  []*part
	partOf []int32
	// chainOf numbers the (exchange, routing key, key) of each message. follower
	// is the next message of the chain, which leaves after the confirm of this
	// one (order strict).
	chainOf  []int32
	breaks   []breakpoint
	follower []int32

	deliveries []delivery

	wake chan struct{} // capacity 1: look again

	mu      sync.Mutex
	arrived []completion
	spare   []completion
}

// completion is an outcome on its way from a channel to its call.
type completion struct {
	index   int32
	outcome outcome
}

// complete reports an outcome; a channel calls it, and rings wake.
func (c *call) complete(index int32, o outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.arrived = append(c.arrived, completion{index, o})
}

// settle records the result of one message. After a failure nothing more of
// its chain is sent.
func (c *call) settle(index int32, err error) {
	for index != none {
		if c.states[index] == settled {
			return
		}
		c.states[index] = settled
		c.results[index] = err
		c.unsettled--
		if err == nil {
			return
		}
		if chain := c.chainOf[index]; chain != none {
			if b := &c.breaks[chain]; b.err == nil || index < b.index {
				*b = breakpoint{index, heritage(err)}
			}
		}
		index, err = c.follower[index], heritage(err)
	}
}

// cut returns why a message must not be sent, nil when it may be.
func (c *call) cut(index int32) error {
	if chain := c.chainOf[index]; chain != none && c.breaks[chain].index < index {
		return c.breaks[chain].err
	}
	return nil
}

// heritage is what a failure means for the rest of its chain: a failure that
// concerns everybody is theirs too.
func heritage(err error) error {
	if sinks.ScopeOf(err) == sinks.ScopeSink {
		return err
	}
	return sinks.ErrSkipped
}

// settleRest gives every unsettled message of a part, or of all parts, a result.
func (c *call) settleRest(only *part, failure func(index int32) error) {
	for i := range c.messages {
		if c.states[i] != settled && (only == nil || c.parts[c.partOf[i]] == only) {
			c.settle(int32(i), failure(int32(i)))
		}
	}
}

// run sends until every message is settled.
func (c *call) run(ctx context.Context) {
	defer c.connection.changed.remove(c.wake)
	defer c.depart()
	var blockedSince time.Time
	for {
		c.connection.changed.add(c.wake)
		c.collect()
		reason := c.connection.block.reason.Load()
		var grace <-chan time.Time
		switch {
		case c.unsettled == 0:
			return
		case c.connection.ended():
			c.abortWithConnection()
			return
		case ctx.Err() != nil:
			c.abort(ctx)
			return
		case reason == nil:
			blockedSince = time.Time{}
			for _, l := range c.parts {
				c.advance(ctx, l)
			}
			if c.unsettled == 0 {
				return
			}
		default:
			if blockedSince.IsZero() {
				blockedSince = time.Now()
			}
			left := blockGrace - time.Since(blockedSince)
			if left <= 0 || !slices.ContainsFunc(c.parts, (*part).busy) {
				err := blocked(c.connection.target.address, *reason)
				c.settleRest(nil, func(int32) error { return err })
				return
			}
			grace = time.After(left)
		}
		select {
		case <-c.wake:
		case <-grace:
		case <-ctx.Done():
		}
	}
}

// abort settles everything when the context has ended.
func (c *call) abort(ctx context.Context) {
	sent := interrupted(ctx, c.connection.target.address, true)
	unsent := interrupted(ctx, c.connection.target.address, false)
	c.settleRest(nil, func(index int32) error {
		if c.states[index] == inFlight {
			return sent
		}
		return unsent
	})
}

// abortWithConnection settles everything when the connection has ended, after the
// confirms that came before its end.
func (c *call) abortWithConnection() {
	for _, l := range c.parts {
		if l.channel != nil {
			<-l.channel.ended // follows at once
		}
	}
	c.collect()
	err := c.connection.failure()
	c.settleRest(nil, func(int32) error { return err })
}

// depart leaves the channels.
func (c *call) depart() {
	for _, l := range c.parts {
		if l.channel == nil {
			continue
		}
		if l.inFlight > 0 {
			l.channel.leave(c)
		}
		if l.private {
			l.channel.retire()
		}
	}
}

// collect applies the outcomes that have arrived.
func (c *call) collect() {
	c.mu.Lock()
	batch := c.arrived
	c.arrived = c.spare[:0]
	c.mu.Unlock()
	c.spare = batch
	for _, done := range batch {
		l := c.parts[c.partOf[done.index]]
		l.inFlight--
		c.states[done.index] = waiting
		routingKey := c.messages[done.index].Destination
		switch done.outcome {
		case acknowledged:
			c.settle(done.index, nil)
			if next := c.follower[done.index]; next != none && c.states[next] == waiting {
				l.ready = append(l.ready, next)
			}
		case returned:
			c.settle(done.index, unroutable(l.exchange, routingKey))
		case refusedByNack:
			c.settle(done.index, nacked(l.exchange, routingKey))
		case unresolved:
			l.unresolved = append(l.unresolved, done.index)
		}
	}
}

// prefixes makes the acknowledged messages of each chain a prefix: what was
// acknowledged behind a failure counts as failed, to be sent again in order.
// It returns nil when nothing failed.
func (c *call) prefixes() []error {
	failed := false
	for i := range c.results {
		if err := c.cut(int32(i)); err != nil {
			c.results[i] = err
		}
		failed = failed || c.results[i] != nil
	}
	if !failed {
		return nil
	}
	return c.results
}
