package rabbitmq

import (
	"context"
	"errors"
	"slices"
)

// leg is the part of a call that goes to one exchange.
type leg struct {
	exchange string
	lane     *lane // nil until needed
	private  bool  // lane is this leg's own
	// ready may be sent now, in this order, after the suspects.
	ready []int32
	// suspects were in flight when the broker closed a channel: one of them is
	// to blame. They are sent one at a time on a private lane.
	suspects []int32
	// unresolved were in flight on a lane that has ended.
	unresolved []int32
	inFlight   int
}

func (l *leg) busy() bool { return l.inFlight > 0 }

// advance sends what a leg can send now.
func (c *call) advance(ctx context.Context, l *leg) {
	for {
		if len(l.unresolved) > 0 && !c.mourn(l) {
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
			l.lane.retire()
			l.lane, l.private = nil, false
			continue
		}
		if l.lane == nil {
			var err error
			if cautious {
				l.lane, err = c.session.privateLane(ctx, l.exchange)
			} else {
				l.lane, err = c.session.lane(ctx, l.exchange)
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
		case errors.Is(err, errLaneEnded):
			if !c.mourn(l) {
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
func (c *call) send(l *leg, index int32) error {
	if !c.session.stream.hasRoom() {
		return errLaneFull
	}
	m := &c.messages[index]
	publishing := c.encoder.publishing(m)
	if err := checkFrame(m, &publishing, c.session.connection.Config.FrameSize); err != nil {
		c.settle(index, err)
		return nil
	}
	if limit := c.session.largest(); int64(len(m.Payload)) > limit {
		c.settle(index, oversize(m, limit))
		return nil
	}
	d := &c.deliveries[index]
	*d = delivery{call: c, index: index}
	// Before it is sent: its outcome may arrive at once.
	c.states[index] = inFlight
	l.inFlight++
	if err := l.lane.send(d, m.Destination, c.mandatory, publishing); err != nil {
		c.states[index] = waiting
		l.inFlight--
		return err
	}
	return nil
}

// mourn finds out why a leg's lane has ended and what follows for its
// messages. It returns false when the connection has ended with it.
func (c *call) mourn(l *leg) bool {
	<-l.lane.ended // follows at once
	c.collect()
	if c.session.ended() {
		return false
	}
	reason, private := l.lane.err, l.private
	lost := l.unresolved
	l.lane, l.private, l.unresolved = nil, false, nil
	slices.Sort(lost)
	user := c.session.target.user
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
	case c.session.learn(reason) && slices.ContainsFunc(lost, c.isOversize):
		// It is known what to blame, and send refuses it.
		l.ready = append(lost, l.ready...)
	default:
		l.suspects = append(l.suspects, lost...)
		slices.Sort(l.suspects)
	}
	return true
}

func (c *call) isOversize(index int32) bool {
	return int64(len(c.messages[index].Payload)) > c.session.largest()
}
