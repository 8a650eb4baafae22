package rabbitmq

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/internal/window"
)

// blockGrace is how long messages in flight are waited for after the broker began to
// block: alarms can be over soon, and what is sent again is a duplicate.
const blockGrace = 2 * time.Second

// sender implements sinks.Stream. Its goroutine sends and settles while something is in
// flight; channels report outcomes with complete.
type sender struct {
	publisher *Publisher
	window    *window.Window
	strict    bool
	wake      chan struct{} // capacity 1: look again
	// expired: the context of a call has ended.
	expired atomic.Bool

	mu      sync.Mutex
	running bool
	inbox   []entry
	arrived []completion
	spare   []completion
	// interrupt ends what the goroutine waits for, nil while it does not.
	interrupt context.CancelFunc

	// The rest belongs to the goroutine.

	connection *connection
	encoder    encoder
	// calls are under way, the oldest first; finished of them have every message
	// settled.
	calls    []*call
	finished int
	next     int64
	parts    []*part
	// chains are those with a message under way, broken those whose messages are not
	// sent until they are resumed.
	chains map[chainKey]*chain
	broken map[chainKey]struct{}
}

// entry is what Send or Resume was called with.
type entry struct {
	call    *call
	resumed []chainKey
}

// Stream implements sinks.Streamer.
func (p *Publisher) Stream(limit sinks.Window) sinks.Stream {
	return &sender{
		publisher: p,
		window:    window.New(limit),
		strict:    p.config.Order == OrderStrict,
		wake:      make(chan struct{}, 1),
		encoder:   encoder{envelope: p.envelope, persistent: p.config.Persistent},
	}
}

// Send implements sinks.Stream.
func (s *sender) Send(ctx context.Context, messages []sinks.Message) sinks.Receipt {
	c := newCall(ctx, s, messages)
	if len(messages) == 0 {
		close(c.done)
		return c
	}
	c.share, _ = s.window.Enter(ctx, messages) // without one it fails as its context has ended
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running && !s.publisher.start(s.run) {
		c.close(errClosed)
		return c
	}
	s.running = true
	c.release = context.AfterFunc(ctx, s.expire)
	s.inbox = append(s.inbox, entry{call: c})
	ring(s.wake)
	return c
}

// Resume implements sinks.Stream.
func (s *sender) Resume(messages []sinks.Message) {
	var keys []chainKey
	for i := range messages {
		if key, ordered := s.chainKey(&messages[i]); ordered {
			keys = append(keys, key.clone())
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inbox = append(s.inbox, entry{resumed: keys})
}

// expire has the goroutine look at the contexts of calls.
func (s *sender) expire() {
	s.expired.Store(true)
	s.mu.Lock()
	if s.interrupt != nil {
		s.interrupt()
	}
	s.mu.Unlock()
	ring(s.wake)
}

// run sends until every message is settled.
func (s *sender) run() {
	var blockedSince time.Time
	for {
		if s.connection != nil {
			s.connection.changed.add(s.wake)
		}
		s.take()
		s.collect()
		s.giveUp()
		s.answer()
		var grace <-chan time.Time
		switch {
		case len(s.calls) == 0:
			if s.rest() {
				return
			}
			continue
		case s.connection == nil:
			s.connect()
			continue
		case s.connection.ended():
			s.abort()
			continue
		case !s.connection.block.active():
			blockedSince = time.Time{}
			for _, l := range s.parts {
				s.advance(l)
			}
		default:
			if blockedSince.IsZero() {
				blockedSince = time.Now()
			}
			left := blockGrace - time.Since(blockedSince)
			if left <= 0 || !slices.ContainsFunc(s.parts, (*part).busy) {
				s.settleBlocked()
			}
			grace = time.After(max(left, 0))
		}
		if s.answer(); len(s.calls) == 0 {
			continue
		}
		select {
		case <-s.wake:
		case <-grace:
		}
	}
}

// take plans what Send and Resume have left.
func (s *sender) take() {
	s.mu.Lock()
	inbox := s.inbox
	s.inbox = nil
	s.mu.Unlock()
	for _, e := range inbox {
		if e.call == nil {
			s.resume(e.resumed)
			continue
		}
		s.plan(e.call)
	}
}

// resume makes broken chains whole. What was sent before still has the chain that broke.
func (s *sender) resume(keys []chainKey) {
	for _, key := range keys {
		if _, broken := s.broken[key]; broken {
			delete(s.broken, key)
			delete(s.chains, key)
		}
	}
}

// rest ends the run if nothing was sent meanwhile.
func (s *sender) rest() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.ContainsFunc(s.inbox, func(e entry) bool { return e.call != nil }) {
		return false
	}
	for _, l := range s.parts {
		if l.private {
			l.channel.retire()
		}
	}
	if s.connection != nil {
		s.connection.changed.remove(s.wake)
	}
	s.connection, s.parts, s.chains, s.running = nil, nil, nil, false
	return true
}

// connect waits for the connection.
func (s *sender) connect() {
	interrupted, err := s.interruptible(func(ctx context.Context) (err error) {
		s.connection, err = s.publisher.connection(ctx)
		return err
	})
	if err != nil && !interrupted {
		s.settleRest(nil, func(*delivery) error { return err })
		s.parts = nil
	}
}

// interruptible runs what blocks, until the context of a call ends.
func (s *sender) interruptible(f func(context.Context) error) (interrupted bool, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.mu.Lock()
	s.interrupt = cancel
	s.mu.Unlock()
	if s.expired.Load() {
		cancel()
	}
	err = f(ctx)
	s.mu.Lock()
	s.interrupt = nil
	s.mu.Unlock()
	return ctx.Err() != nil, err
}

// giveUp settles the calls whose context has ended.
func (s *sender) giveUp() {
	if !s.expired.Swap(false) {
		return
	}
	for _, c := range s.calls {
		if c.ctx.Err() == nil {
			continue
		}
		c.expired = true
		s.leave(c)
		s.settleExpired(c)
	}
}

func (s *sender) settleExpired(c *call) {
	sent := interrupted(c.ctx, s.publisher.target.address, true)
	unsent := interrupted(c.ctx, s.publisher.target.address, false)
	for i := range c.deliveries {
		if d := &c.deliveries[i]; d.state == inFlight {
			s.settle(d, sent)
		} else {
			s.settle(d, unsent)
		}
	}
}

// settleBlocked settles everything because the broker blocks.
func (s *sender) settleBlocked() {
	reason := s.connection.block.reason.Load()
	if reason == nil {
		return // no longer
	}
	for _, c := range s.calls {
		s.leave(c)
	}
	err := blocked(s.connection.target.address, *reason)
	s.settleRest(nil, func(*delivery) error { return err })
}

// leave takes a call's messages back from the channels. What was confirmed by then is
// settled; what is in flight stays so, and is nobody's.
func (s *sender) leave(c *call) {
	for _, l := range s.parts {
		if l.inFlight > 0 {
			l.channel.leave(c)
		}
	}
	s.collect()
	for i := range c.deliveries {
		d := &c.deliveries[i]
		if d.state != inFlight {
			continue
		}
		l := d.part
		l.inFlight--
		if l.private { // the next one is not to be blamed for it
			l.channel.retire()
			l.channel, l.private = nil, false
		}
	}
}

// abort settles everything when the connection has ended, after the confirms that came
// before its end.
func (s *sender) abort() {
	for _, l := range s.parts {
		if l.channel != nil {
			<-l.channel.ended // follows at once
		}
	}
	s.collect()
	err := s.connection.failure()
	s.settleRest(nil, func(*delivery) error { return err })
	s.connection, s.parts = nil, nil
}

// answer ends the calls whose messages are all settled. With order pipelined a message
// can be acknowledged before the one before it, whose failure it shares, so that calls
// are answered in their order.
func (s *sender) answer() {
	if s.finished == 0 {
		return
	}
	left := s.calls[:0]
	for _, c := range s.calls {
		if c.unsettled > 0 || len(left) > 0 && !s.strict && !c.expired {
			left = append(left, c)
			continue
		}
		if len(left) > 0 && !s.strict {
			s.cutBehind(left, c)
		}
		s.finished--
		s.forget(c)
		c.close(nil)
	}
	clear(s.calls[len(left):])
	s.calls = left
}

// cutBehind has those of a call fail that were acknowledged behind one that is not
// settled yet: nobody waits for that.
func (s *sender) cutBehind(earlier []*call, c *call) {
	open := map[*chain]bool{}
	for _, other := range earlier {
		for i := range other.deliveries {
			if d := &other.deliveries[i]; d.chain != nil && d.state != settled {
				open[d.chain] = true
			}
		}
	}
	for i := range c.deliveries {
		if d := &c.deliveries[i]; d.chain != nil && open[d.chain] && c.results[d.index] == nil {
			c.results[d.index] = sinks.ErrSkipped
			s.breakChain(d, sinks.ErrSkipped)
		}
	}
}

// forget drops what is kept of a call's chains, but for those that go on in other calls.
func (s *sender) forget(c *call) {
	for i := range c.deliveries {
		chain := c.deliveries[i].chain
		if chain == nil || chain.unsettled > 0 && chain.keyOf != c {
			continue
		}
		key, _ := s.chainKey(&c.messages[i])
		if s.chains[key] != chain {
			continue
		}
		delete(s.chains, key)
		if chain.unsettled > 0 {
			s.chains[key.clone()], chain.keyOf = chain, nil
		}
	}
}

// channelOf opens a part's channel, and reports whether it has one.
func (s *sender) channelOf(l *part, private bool) bool {
	interrupted, err := s.interruptible(func(ctx context.Context) error {
		open := s.connection.channel
		if private {
			open = s.connection.privateChannel
		}
		channel, err := open(ctx, l.exchange)
		if err == nil {
			l.channel, l.private = channel, private
		}
		return err
	})
	if err != nil && !interrupted {
		s.settleRest(l, func(*delivery) error { return err })
	}
	return err == nil
}

// user is whom the broker knows.
func (s *sender) user() string { return s.connection.target.user }

// refusal explains a channel that the broker closed because of one message.
func (s *sender) refusal(d *delivery, reason *amqp.Error) error {
	return messageRefusal(d.part.exchange, s.user(), d.message(), reason)
}
