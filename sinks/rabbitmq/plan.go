package rabbitmq

import "github.com/outboxrelay/relay/sinks"

// chainKey is what order is kept within.
type chainKey struct{ exchange, routingKey, key string }

// newCall sorts messages into parts and chains, and settles those that AMQP
// cannot carry. It needs no connection.
func newCall(messages []sinks.Message, config Config, envelope sinks.Envelope) *call {
	n := len(messages)
	numbers := make([]int32, 3*n)
	c := &call{
		messages:  messages,
		mandatory: config.Mandatory,
		encoder:   encoder{envelope: envelope, persistent: config.Persistent},
		results:   make([]error, n), states: make([]state, n), unsettled: n,
		partOf: numbers[:n], chainOf: numbers[n : 2*n], follower: numbers[2*n:],
		deliveries: make([]delivery, n),
		wake:       make(chan struct{}, 1),
	}
	strict := config.Order == OrderStrict
	chains := make(map[chainKey]int32)
	var last []int32 // of each chain, the message before
	for i := range messages {
		m, index := &messages[i], int32(i)
		exchange := m.Exchange
		if exchange == "" {
			exchange = config.Exchange
		}
		l := c.part(index, exchange)
		c.chainOf[i], c.follower[i] = none, none
		previous := int32(none)
		if key, ordered := m.OrderedBy(); ordered {
			id := chainKey{exchange, m.Destination, key}
			chain, known := chains[id]
			if known {
				previous = last[chain]
				last[chain] = index
			} else {
				chain = int32(len(last))
				chains[id] = chain
				last = append(last, index)
				c.breaks = append(c.breaks, breakpoint{})
			}
			c.chainOf[i] = chain
			if err := c.cut(index); err != nil {
				c.settle(index, err)
				continue
			}
		}
		switch err := check(exchange, m); {
		case err != nil:
			c.settle(index, err)
		case strict && previous != none:
			c.follower[previous] = index
		default:
			l.ready = append(l.ready, index)
		}
	}
	return c
}

// part returns the part of an exchange and notes that the message is part of it.
// A call has few of them.
func (c *call) part(index int32, exchange string) *part {
	for i, l := range c.parts {
		if l.exchange == exchange {
			c.partOf[index] = int32(i)
			return l
		}
	}
	l := &part{exchange: exchange}
	c.partOf[index] = int32(len(c.parts))
	c.parts = append(c.parts, l)
	return l
}
