package rabbitmq

import (
	"maps"
	"slices"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
)

// acks acknowledges the deliveries of one channel, whose tags count from one.
// It may be used concurrently.
type acks struct {
	channel amqp.Acknowledger
	// patient is how many deliveries of batches may be settled, and the broker
	// not yet told, because ones with lower tags are being worked on. Told one by
	// one, each costs the broker a search among all that are unacknowledged.
	patient int

	mu sync.Mutex
	// Every tag up to floor is settled, and those in above; nothing else is. Of
	// those in held the broker does not know.
	floor       uint64
	above, held map[uint64]bool
}

func newAcks(channel amqp.Acknowledger, patient int) *acks {
	return &acks{channel: channel, patient: patient, above: make(map[uint64]bool), held: make(map[uint64]bool)}
}

// ack acknowledges deliveries, several with one frame where no delivery that
// is still being worked on has a lower tag: the broker takes a multiple
// acknowledgement for all tags below it.
func (a *acks) ack(tags ...uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, tag := range tags {
		a.held[tag] = true
	}
	a.settle(tags)
	var highest uint64
	covered := 0
	for tag := range a.held {
		if tag <= a.floor {
			delete(a.held, tag)
			highest = max(highest, tag)
			covered++
		}
	}
	if covered > 0 {
		// All tags up to the highest covered one are settled, so the frame
		// acknowledges the covered ones alone.
		if err := a.channel.Ack(highest, covered > 1); err != nil {
			return err
		}
	}
	if len(tags) > 1 && len(a.held) <= a.patient {
		return nil
	}
	return a.tell()
}

// flush acknowledges all that is settled.
func (a *acks) flush() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tell()
}

// tell acknowledges what was held, one by one.
func (a *acks) tell() error {
	for _, tag := range slices.Sorted(maps.Keys(a.held)) {
		if err := a.channel.Ack(tag, false); err != nil {
			return err
		}
		delete(a.held, tag)
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
