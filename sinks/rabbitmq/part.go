package rabbitmq

import (
	"cmp"
	"errors"
	"slices"
)

// part is the part of a stream that goes to one exchange.
type part struct {
	exchange string
	channel  *channel // nil until needed
	private  bool     // channel is this part's own
	// ready may be sent now, in this order, after the suspects.
	ready []*delivery
	// suspects were in flight when the broker closed a channel: one of them is
	// to blame. They are sent one at a time on a private channel.
	suspects []*delivery
	// unresolved were in flight on a channel that has ended.
	unresolved []*delivery
	inFlight   int
}

func (l *part) busy() bool { return l.inFlight > 0 }

// advance sends what a part can send now.
func (s *sender) advance(l *part) {
	for {
		if len(l.unresolved) > 0 && !s.afterEnd(l) {
			return
		}
		l.suspects = s.unsent(l.suspects)
		l.ready = s.unsent(l.ready)
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
		if l.channel == nil && !s.channelOf(l, cautious) {
			return
		}
		var err error
		if cautious {
			err = s.send(l, l.suspects[0])
		} else {
			for err == nil && len(l.ready) > 0 {
				if err = s.send(l, l.ready[0]); err == nil {
					l.ready = s.unsent(l.ready[1:])
				}
			}
		}
		switch {
		case errors.Is(err, errChannelEnded):
			if !s.afterEnd(l) {
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
func (s *sender) unsent(queue []*delivery) []*delivery {
	for len(queue) > 0 {
		d := queue[0]
		if d.state == waiting {
			err := d.cut()
			if err == nil {
				break
			}
			s.settle(d, err)
		}
		if d.state != settled {
			break
		}
		queue = queue[1:]
	}
	return queue
}

// send publishes one message, unless it must not be sent at all.
func (s *sender) send(l *part, d *delivery) error {
	if !s.connection.stream.hasRoom() {
		return errWindowFull
	}
	m := d.message()
	publishing := s.encoder.publishing(m)
	if err := checkFrame(m, &publishing, s.connection.amqp.Config.FrameSize); err != nil {
		s.settle(d, err)
		return nil
	}
	if limit := s.connection.largest(); int64(len(m.Payload)) > limit {
		s.settle(d, oversize(m, limit))
		return nil
	}
	// Before it is sent: its outcome may arrive at once.
	d.isBack, d.left, d.confirm = false, false, nil
	d.state = inFlight
	l.inFlight++
	if err := l.channel.send(d, m.Destination, s.publisher.config.Mandatory, publishing); err != nil {
		d.state = waiting
		l.inFlight--
		return err
	}
	return nil
}

// afterEnd finds out why a part's channel has ended and what follows for its
// messages. It returns false when the connection has ended with it.
func (s *sender) afterEnd(l *part) bool {
	<-l.channel.ended // follows at once
	s.collect()
	if s.connection.ended() {
		return false
	}
	reason, private := l.channel.err, l.private
	// Those whose call has ended meanwhile are not the sender's any more.
	lost := slices.DeleteFunc(l.unresolved, func(d *delivery) bool { return d.state == settled })
	l.channel, l.private, l.unresolved = nil, false, nil
	slices.SortFunc(lost, byPosition)
	switch {
	case reason == nil:
		// This side gave the channel up, so none of them is to blame.
		l.ready = append(lost, l.ready...)
	case judge(reason).exchange:
		err := exchangeRefusal(l.exchange, s.user(), reason)
		s.settleRest(l, func(*delivery) error { return err })
	case private:
		for _, d := range lost { // at most one
			s.settle(d, s.refusal(d, reason))
		}
	case s.connection.learn(reason) && slices.ContainsFunc(lost, s.isOversize):
		// It is known what to blame, and send refuses it.
		l.ready = append(lost, l.ready...)
	default:
		l.suspects = append(l.suspects, lost...)
		slices.SortFunc(l.suspects, byPosition)
	}
	return true
}

func (s *sender) isOversize(d *delivery) bool {
	return int64(len(d.message().Payload)) > s.connection.largest()
}

func byPosition(a, b *delivery) int { return cmp.Compare(a.position(), b.position()) }
