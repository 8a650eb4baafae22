package rabbitmq

import (
	"slices"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
)

// acks acknowledges the deliveries of one channel, whose tags count from one.
// It may be used concurrently.
type acks struct {
	channel amqp.Acknowledger

	mu sync.Mutex
	// Every tag up to floor is settled, and those in above; nothing else is.
	floor uint64
	above map[uint64]bool
}

func newAcks(channel amqp.Acknowledger) *acks {
	return &acks{channel: channel, above: make(map[uint64]bool)}
}

// ack acknowledges deliveries, several with one frame where no delivery that
// is still being worked on has a lower tag: the broker takes a multiple
// acknowledgement for all tags below it.
func (a *acks) ack(tags ...uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	slices.Sort(tags)
	a.settle(tags)
	covered, _ := slices.BinarySearch(tags, a.floor+1)
	if covered > 1 {
		// All tags up to the highest covered one are settled or
		// among tags, so the frame acknowledges these alone.
		if err := a.channel.Ack(tags[covered-1], true); err != nil {
			return err
		}
		tags = tags[covered:]
	}
	for _, tag := range tags {
		if err := a.channel.Ack(tag, false); err != nil {
			return err
		}
	}
	return nil
}

// requeue gives a delivery back to the queue.
func (a *acks) requeue(tag uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.settle([]uint64{tag})
	return a.channel.Nack(tag, false, true)
}

func (a *acks) settle(tags []uint64) {
	for _, tag := range tags {
		a.above[tag] = true
	}
	for a.above[a.floor+1] {
		a.floor++
		delete(a.above, a.floor)
	}
}
