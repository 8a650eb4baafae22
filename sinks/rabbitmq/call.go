package rabbitmq

import (
	"context"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/internal/window"
)

// state is where a message of a call is.
type state uint8

const (
	waiting state = iota
	inFlight
	settled
)

// call is one batch of a stream. It implements sinks.Receipt.
type call struct {
	sender   *sender
	ctx      context.Context
	messages []sinks.Message
	// share is the call's part of the stream's window; release lets go of ctx.
	share   window.Share
	release func() bool

	// first is the position of the first message in the stream.
	first      int64
	results    []error
	deliveries []delivery
	unsettled  int
	// expired: ctx ended before all was settled.
	expired bool
	done    chan struct{}
}

func newCall(ctx context.Context, s *sender, messages []sinks.Message) *call {
	return &call{
		sender: s, ctx: ctx, messages: messages,
		results: make([]error, len(messages)), unsettled: len(messages),
		deliveries: make([]delivery, len(messages)),
		done:       make(chan struct{}),
	}
}

// Done implements sinks.Receipt.
func (c *call) Done() <-chan struct{} { return c.done }

// Results implements sinks.Receipt.
func (c *call) Results() []error {
	<-c.done
	for _, err := range c.results {
		if err != nil {
			return c.results
		}
	}
	return nil
}

// close answers the call, with one failure for all or with their own. It makes the
// acknowledged messages of each chain a prefix: what was acknowledged behind a failure
// counts as failed, to be sent again in order.
func (c *call) close(failure error) {
	for i := range c.results {
		switch err := c.deliveries[i].cut(); {
		case failure != nil:
			c.results[i] = failure
		case err != nil:
			c.results[i] = err
		}
	}
	if c.release != nil {
		c.release()
	}
	close(c.done)
	c.share.Leave()
}

// chain is the messages of one (exchange, routing key, key) that are under way, and those
// of the same calls that were.
type chain struct {
	// last is the latest message (order strict: the next one leaves after its confirm).
	last      *delivery
	unsettled int
	// failed is the earliest message that is known to have failed, nil for none:
	// nothing behind it is sent any more. err is what the rest of its call fails with.
	failed *delivery
	err    error
	// keyOf is the call whose memory the chain's key shares, nil for none.
	keyOf *call
}

// position is where a message is in its stream.
func (d *delivery) position() int64 { return d.call.first + int64(d.index) }

func (d *delivery) message() *sinks.Message { return &d.call.messages[d.index] }

// cut returns why a message must not be sent, nil when it may be.
func (d *delivery) cut() error {
	switch {
	case d.chain == nil || d.chain.failed == nil || d.chain.failed.position() >= d.position():
		return nil
	case d.chain.failed.call == d.call:
		return d.chain.err
	}
	return sinks.ErrSkipped
}

// heritage is what a failure means for the rest of its chain in the same call: a failure
// that concerns everybody is theirs too.
func heritage(err error) error {
	if sinks.ScopeOf(err) == sinks.ScopeSink {
		return err
	}
	return sinks.ErrSkipped
}

// settle records the result of one message. After a failure nothing more of
// its chain is sent.
func (s *sender) settle(d *delivery, err error) {
	for d != nil && d.state != settled {
		d.state = settled
		d.call.results[d.index] = err
		if d.call.unsettled--; d.call.unsettled == 0 {
			s.finished++
		}
		if d.chain != nil {
			d.chain.unsettled--
		}
		if err == nil {
			return
		}
		s.breakChain(d, heritage(err))
		next := d.follower
		if err = heritage(err); next != nil && next.call != d.call {
			err = sinks.ErrSkipped
		}
		d = next
	}
}

// breakChain breaks a message's chain behind it, for what will be sent of it too.
func (s *sender) breakChain(d *delivery, err error) {
	chain := d.chain
	if chain == nil {
		return
	}
	if chain.failed == nil || d.position() < chain.failed.position() {
		chain.failed, chain.err = d, err
	}
	if key, _ := s.chainKey(d.message()); s.chains[key] == chain {
		if s.broken == nil {
			s.broken = map[chainKey]struct{}{}
		}
		s.broken[key.clone()] = struct{}{}
	}
}

// settleRest gives every unsettled message of a part, or of all parts, a result.
func (s *sender) settleRest(only *part, failure func(*delivery) error) {
	for _, c := range s.calls {
		for i := range c.deliveries {
			if d := &c.deliveries[i]; d.state != settled && (only == nil || d.part == only) {
				s.settle(d, failure(d))
			}
		}
	}
}

// completion is an outcome on its way from a channel to its sender.
type completion struct {
	delivery *delivery
	outcome  outcome
}

// complete reports an outcome; a channel calls it, and rings wake.
func (s *sender) complete(d *delivery, o outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arrived = append(s.arrived, completion{d, o})
}

// collect applies the outcomes that have arrived.
func (s *sender) collect() {
	s.mu.Lock()
	batch := s.arrived
	s.arrived = s.spare[:0]
	s.mu.Unlock()
	for _, done := range batch {
		d := done.delivery
		l := d.part
		l.inFlight--
		d.state = waiting
		routingKey := d.message().Destination
		switch done.outcome {
		case acknowledged:
			s.settle(d, nil)
			if next := d.follower; next != nil && next.state == waiting {
				l.ready = append(l.ready, next)
			}
		case returned:
			s.settle(d, unroutable(l.exchange, routingKey))
		case refusedByNack:
			s.settle(d, nacked(l.exchange, routingKey))
		case unresolved:
			l.unresolved = append(l.unresolved, d)
		}
	}
	clear(batch)
	s.spare = batch
}
