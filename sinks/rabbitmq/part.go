package rabbitmq

import (
	"context"
	"errors"
	"slices"
)

// part is the part of a call that goes to one exchange.
type part struct {
	exchange string
	channel  *channel // nil until needed
	private  bool     // channel is this part's own
	// ready may be sent now, in this order, after the suspects.
	ready []int32
	// suspects were in flight when the broker closed a channel: one of them is
	// to blame. They are sent one at a time on a private channel.
	suspects []int32
	// unresolved were in flight on a channel that has ended.
	unresolved []int32
	inFlight   int
}

func (l *part) busy() bool { return l.inFlight > 0 }

// advance sends what a part can send now.
func (c *call) advance(ctx context.Context, l *part) {
	for {
		if len(l.unresolved) > 0 && !c.afterEnd(l) {
			return
		}
		l.suspects = c.unsent(l.suspects)
		l.ready = c.unsent(l.ready)
		cautious := len(l.suspects) > 0
		switch {
		case cautious && l.inFlight > 0:
			return
		case !cautious && len(l.ready) == 0 && !l.private:
			return
		}
		if l.private && !cautious {
			l.channel.retire()
			l.channel, l.private = nil, false
			continue
		}
		if l.channel == nil {
			var err error
			if cautious {
				l.channel, err = c.connection.privateChannel(ctx, l.exchange)
			} else {
				l.channel, err = c.connection.channel(ctx, l.exchange)
			}
			if err != nil {
				c.settleRest(l, func(int32) error { return err })
				return
			}
			l.private = cautious
		}
		var err error
		if cautious {
			err = c.send(l, l.suspects[0])
		} else {
			for err == nil && len(l.ready) > 0 {
				if err = c.send(l, l.ready[0]); err == nil {
					l.ready = c.unsent(l.ready[1:])
				}
			}
		}
		switch {
		case errors.Is(err, errChannelEnded):
			if !c.afterEnd(l) {
				return
			}
		case cautious && err == nil && l.inFlight == 0:
			// It was settled without being sent; go on with the next.
		default:
			return // all sent, or the window or the buffer is full
		}
	}
}

// unsent drops what needs not be sent any more from the front of a queue.
func (c *call) unsent(queue []int32) []int32 {
	for len(queue) > 0 {
		index := queue[0]
		if c.states[index] == waiting {
			err := c.cut(index)
			if err == nil {
				break
			}
			c.settle(index, err)
		}
		if c.states[index] != settled {
			break
		}
		queue = queue[1:]
	}
	return queue
}

// send publishes one message, unless it must not be sent at all.
func (c *call) send(l *part, index int32) error {
	if !c.connection.stream.hasRoom() {
		return errWindowFull
	}
	m := &c.messages[index]
	publishing := c.encoder.publishing(m)
	if err := checkFrame(m, &publishing, c.connection.amqp.Config.FrameSize); err != nil {
		c.settle(index, err)
		return nil
	}
	if limit := c.connection.largest(); int64(len(m.Payload)) > limit {
		c.settle(index, oversize(m, limit))
		return nil
	}
	d := &c.deliveries[index]
	*d = delivery{call: c, index: index}
	// Before it is sent: its outcome may arrive at once.
	c.states[index] = inFlight
	l.inFlight++
	if err := l.channel.send(d, m.Destination, c.mandatory, publishing); err != nil {
		c.states[index] = waiting
		l.inFlight--
		return err
	}
	return nil
}

// afterEnd finds out why a part's channel has ended and what follows for its
// messages. It returns false when the connection has ended with it.
func (c *call) afterEnd(l *part) bool {
	<-l.channel.ended // follows at once
	c.collect()
	if c.connection.ended() {
		return false
	}
	reason, private := l.channel.err, l.private
	lost := l.unresolved
	l.channel, l.private, l.unresolved = nil, false, nil
	slices.Sort(lost)
	user := c.connection.target.user
	switch {
	case reason == nil:
		// This side gave the channel up, so none of them is to blame.
		l.ready = append(lost, l.ready...)
	case judge(reason).exchange:
		err := exchangeRefusal(l.exchange, user, reason)
		c.settleRest(l, func(int32) error { return err })
	case private:
		for _, index := range lost { // at most one
			c.settle(index, messageRefusal(l.exchange, user, &c.messages[index], reason))
		}
	case c.connection.learn(reason) && slices.ContainsFunc(lost, c.isOversize):
		// It is known what to blame, and send refuses it.
		l.ready = append(lost, l.ready...)
	default:
		l.suspects = append(l.suspects, lost...)
		slices.Sort(l.suspects)
	}
	return true
}

func (c *call) isOversize(index int32) bool {
	return int64(len(c.messages[index].Payload)) > c.connection.largest()
}
