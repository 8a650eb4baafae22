package rabbitmq

import (
	"cmp"
	"strings"

	"github.com/outboxrelay/relay/sinks"
)

// chainKey is what order is kept within.
type chainKey struct{ exchange, routingKey, key string }

// clone shares no memory with a batch, for what stays longer.
func (k chainKey) clone() chainKey {
	return chainKey{strings.Clone(k.exchange), strings.Clone(k.routingKey), k.key}
}

// chainKey returns what a message is ordered by, and whether it is ordered at all.
func (s *sender) chainKey(m *sinks.Message) (chainKey, bool) {
	key, ordered := m.OrderedBy()
	return chainKey{s.exchange(m), m.Destination, key}, ordered
}

func (s *sender) exchange(m *sinks.Message) string {
	return cmp.Or(m.Exchange, s.publisher.config.Exchange)
}

// plan sorts a call's messages into parts and chains, and settles those that AMQP cannot
// carry, that are behind a failed one, or out of time. It needs no connection.
func (s *sender) plan(c *call) {
	c.first = s.next
	s.next += int64(len(c.messages))
	s.calls = append(s.calls, c)
	var chains []chain
	if s.chains == nil {
		s.chains = make(map[chainKey]*chain)
	}
	for i := range c.messages {
		m, d := &c.messages[i], &c.deliveries[i]
		d.call, d.index, d.part = c, int32(i), s.part(s.exchange(m))
		if key, ordered := s.chainKey(m); ordered {
			d.chain = s.chains[key]
			if d.chain == nil {
				if chains == nil {
					chains = make([]chain, 0, len(c.messages)) // no larger: it must not move
				}
				chains = append(chains, chain{keyOf: c})
				d.chain = &chains[len(chains)-1]
				s.chains[key] = d.chain
				if _, broken := s.broken[key]; broken {
					d.chain.unsettled++
					s.settle(d, sinks.ErrSkipped)
					continue
				}
			}
			d.chain.unsettled++
		}
		switch err := check(d.part.exchange, m); {
		case d.cut() != nil:
			s.settle(d, d.cut())
		case err != nil:
			s.settle(d, err)
		case s.strict && d.chain != nil && d.chain.last != nil && d.chain.last.state != settled:
			d.chain.last.follower = d
		default:
			d.part.ready = append(d.part.ready, d)
		}
		if d.chain != nil {
			d.chain.last = d
		}
	}
	if c.ctx.Err() != nil {
		c.expired = true
		s.settleExpired(c)
	}
}

// part returns the part of an exchange. There are few of them.
func (s *sender) part(exchange string) *part {
	for _, l := range s.parts {
		if l.exchange == exchange {
			return l
		}
	}
	l := &part{exchange: strings.Clone(exchange)}
	s.parts = append(s.parts, l)
	return l
}
