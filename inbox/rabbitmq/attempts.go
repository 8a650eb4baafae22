package rabbitmq

import (
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/inbox"
)

// maxRemembered bounds the memory of failures.
const maxRemembered = 10_000

// attempts remembers how often messages have failed, since a failed one may
// come again: it was requeued, or the connection was lost while it waited.
type attempts struct {
	mu     sync.Mutex
	failed map[inbox.ID]int
}

// add counts a failure and returns the number of all.
func (a *attempts) add(id inbox.ID, d *amqp.Delivery, retry Retry) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.failed[id]
	if retry == RetryRequeue {
		// Other consumers may have tried it and given it back.
		n = max(n, deliveries(d))
	}
	n++
	if _, known := a.failed[id]; !known && len(a.failed) >= maxRemembered {
		for other := range a.failed { // any: what is forgotten is tried more often
			delete(a.failed, other)
			break
		}
	}
	if a.failed == nil {
		a.failed = make(map[inbox.ID]int)
	}
	a.failed[id] = n
	return n
}

// of returns how often the message has failed here.
func (a *attempts) of(id inbox.ID) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failed[id]
}

// forget is called when a message is settled.
func (a *attempts) forget(id inbox.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.failed, id)
}

// deliveries returns how often a quorum queue has delivered the message
// before, 0 for other queues.
func deliveries(d *amqp.Delivery) int {
	switch n := d.Headers["x-delivery-count"].(type) {
	case int64:
		return int(n)
	case int32:
		return int(n)
	case int16:
		return int(n)
	case byte:
		return int(n)
	}
	return 0
}
