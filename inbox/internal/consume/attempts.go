package consume

import (
	"sync"

	"github.com/outboxrelay/relay/inbox"
)

// maxRemembered bounds the memory of failures.
const maxRemembered = 10_000

// attempts remembers how often messages have failed, since a failed one may
// come again: it was requeued, or the connection was lost, or the partition was
// somebody else's, while it waited.
type attempts struct {
	mu     sync.Mutex
	failed map[inbox.ID]int
}

// add counts a failure, of a message that failed before times elsewhere, and
// returns the number of all.
func (a *attempts) add(id inbox.ID, before int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := max(a.failed[id], before) + 1
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
