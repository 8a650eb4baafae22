package rabbitmq

import (
	"errors"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// sweepInterval is how often a channel looks behind its oldest unconfirmed
// message: one queue without a quorum must not hide the confirms of others.
const sweepInterval = 10 * time.Millisecond

// abandonedWindows is how many windows of messages may await a confirm that
// nobody waits for any more before the channel is given up.
const abandonedWindows = 4

// outcome is how the broker resolved a delivery.
type outcome uint8

const (
	acknowledged outcome = iota
	returned             // unroutable; the confirm that followed does not count
	refusedByNack
	unresolved // the channel ended before the confirm
)

// delivery is a message of a call and its way through a channel.
type delivery struct {
	call  *call
	index int32

	// Of the sender:

	state state
	part  *part
	chain *chain // nil where nothing is ordered
	// follower is the next message of the chain, which leaves after the confirm of
	// this one (order strict).
	follower *delivery

	// Of the channel that it is in:

	isBack  bool // it came back as unroutable
	left    bool // its call waits no more, and its place in the window is free
	confirm *amqp.DeferredConfirmation
}

// errWindowFull and errChannelEnded say why a channel did not take a message.
var (
	errWindowFull   = errors.New("the window is full")
	errChannelEnded = errors.New("the channel has ended")
)

// channel is an AMQP channel in confirm mode, for one exchange. Its run goroutine
// receives returns and confirms and resolves deliveries; senders send.
type channel struct {
	connection *connection
	exchange   string
	amqp       *amqp.Channel
	window     int
	returns    <-chan amqp.Return
	closes     <-chan *amqp.Error

	mu      sync.Mutex
	queue   []*delivery // in the order of sending; resolved ones leave
	waiting int         // deliveries whose call waits: the window's use
	over    bool

	wake chan struct{} // capacity 1: the queue is no longer empty
	// ended is closed when every delivery is resolved and nothing can be sent
	// any more; err is set before, nil if the channel was closed by this side.
	ended chan struct{}
	err   *amqp.Error
}

func newChannel(s *connection, exchange string, opened *amqp.Channel, window int) *channel {
	return &channel{
		connection: s, exchange: exchange, amqp: opened, window: window,
		// amqp091's reader waits for a full buffer, and then drops.
		returns: opened.NotifyReturn(make(chan amqp.Return, window)),
		closes:  opened.NotifyClose(make(chan *amqp.Error, 1)),
		wake:    make(chan struct{}, 1),
		ended:   make(chan struct{}),
	}
}

// send publishes one message and queues it. It does not block.
func (l *channel) send(d *delivery, routingKey string, mandatory bool, p amqp.Publishing) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.over:
		return errChannelEnded
	case l.waiting >= l.window:
		return errWindowFull
	}
	// Under the lock, so that the queue has the order of the delivery tags and
	// holds each message before its return can arrive.
	confirm, err := l.amqp.PublishWithDeferredConfirm(l.exchange, routingKey, mandatory, false, p)
	if err != nil {
		// A publish fails in an open channel only halfway through its frames.
		if !l.amqp.IsClosed() {
			_ = l.connection.stream.socket.Close()
		}
		return errChannelEnded
	}
	d.confirm = confirm
	l.queue = append(l.queue, d)
	l.waiting++
	if len(l.queue) == 1 {
		ring(l.wake)
	}
	return nil
}

// leave frees the places of deliveries that nobody waits for any more. They
// stay queued, since their returns and confirms still arrive.
func (l *channel) leave(c *call) {
	l.mu.Lock()
	for _, d := range l.queue {
		if d.call == c && !d.left {
			d.left = true
			l.waiting--
		}
	}
	stuck := len(l.queue)-l.waiting > abandonedWindows*l.window
	l.mu.Unlock()
	l.connection.changed.wake()
	if stuck {
		l.retire()
	}
}

// retire closes the channel without waiting for the broker's answer.
func (l *channel) retire() {
	// An error only says that it was closed already. A connection that does not
	// start anything any more closes its channels itself.
	l.connection.start(func() { _ = l.amqp.Close() })
}

// run resolves deliveries until the channel has ended, and calls atEnd just
// before it lets others know.
func (l *channel) run(atEnd func()) {
	defer close(l.ended)
	if atEnd != nil {
		defer atEnd()
	}
	timer := time.NewTimer(sweepInterval)
	defer timer.Stop()
	for {
		var confirmed <-chan struct{}
		var sweep <-chan time.Time
		if oldest := l.oldest(); oldest != nil {
			confirmed, sweep = oldest.Done(), timer.C
			timer.Reset(sweepInterval)
		} else if l.finish() {
			return
		}
		select {
		case r, ok := <-l.returns:
			l.bringBack(r, ok)
		case <-confirmed:
			l.resolve(false)
		case <-sweep:
			l.resolve(true)
		case <-l.wake:
		}
	}
}

func (l *channel) oldest() *amqp.DeferredConfirmation {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return nil
	}
	return l.queue[0].confirm
}

// finish ends the run if the channel has ended and nothing is queued.
func (l *channel) finish() bool {
	if l.returns != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) > 0 {
		return false
	}
	l.over = true
	// amqp091 reports the reason before it closes the returns.
	l.err = <-l.closes
	return true
}

// bringBack marks what a return is about. A return names no delivery tag, so
// every unresolved delivery of the same message to the same routing key counts
// as returned: the same message is there twice only when a call gave up on it,
// or an operator replays it, and then one duplicate is better than a loss.
func (l *channel) bringBack(r amqp.Return, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.markReturned(r, ok)
}

func (l *channel) markReturned(r amqp.Return, ok bool) {
	if !ok {
		l.returns = nil
		return
	}
	id, ok := parseMessageID(r.MessageId)
	if !ok {
		return // not of this sink's making
	}
	for _, d := range l.queue {
		// The messages of a call that has left are not its own any more.
		if d.left {
			continue
		}
		m := d.message()
		if m.Destination == r.RoutingKey && m.ID == id {
			d.isBack = true
		}
	}
}

// resolve takes resolved deliveries off the queue, the ones at its head or all
// of them, and tells their senders.
func (l *channel) resolve(everywhere bool) {
	l.mu.Lock()
	head := 0
	for head < len(l.queue) && l.queue[head].isDone() {
		head++
	}
	done, rest := l.queue[:head], l.queue[head:]
	if everywhere && slices.ContainsFunc(rest, (*delivery).isDone) {
		done, rest = slices.Clone(done), nil
		for _, d := range l.queue[head:] {
			if d.isDone() {
				done = append(done, d)
			} else {
				rest = append(rest, d)
			}
		}
	}
	if len(done) == 0 {
		l.mu.Unlock()
		return
	}
	// A return comes before its confirm: what belongs to these confirms is in
	// the buffer by now.
	for len(l.returns) > 0 {
		r, ok := <-l.returns
		l.markReturned(r, ok)
	}
	// The channel is marked as closed before its confirms are given up.
	ended := l.amqp.IsClosed()
	var previous *sender
	for i, d := range done {
		done[i] = nil
		if d.left {
			continue
		}
		l.waiting--
		to := d.call.sender
		to.complete(d, d.outcome(ended))
		if previous != nil && previous != to {
			ring(previous.wake)
		}
		previous = to
	}
	l.queue = rest
	l.mu.Unlock()
	if previous != nil {
		ring(previous.wake)
	}
	l.connection.changed.wake()
}

func (d *delivery) isDone() bool {
	select {
	case <-d.confirm.Done():
		return true
	default:
		return false
	}
}

func (d *delivery) outcome(ended bool) outcome {
	switch {
	case d.isBack:
		return returned
	case d.confirm.Acked():
		return acknowledged
	case ended:
		return unresolved
	}
	return refusedByNack
}
