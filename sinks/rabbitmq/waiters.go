package rabbitmq

import "sync"

// waiters are calls that wait for something of a connection to change: room in
// its write buffer, a free place in a channel's window, the end of a block, the
// end of the connection. Whoever changes it wakes them all; they look again.
type waiters struct {
	mu  sync.Mutex
	set map[chan struct{}]struct{}
}

// add registers a channel of capacity one for the next wake. A caller looks at
// its condition after it was added, so that no wake is missed.
func (w *waiters) add(bell chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.set == nil {
		w.set = make(map[chan struct{}]struct{})
	}
	w.set[bell] = struct{}{}
}

func (w *waiters) remove(bell chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.set, bell)
}

func (w *waiters) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for bell := range w.set {
		ring(bell)
	}
	clear(w.set)
}

// ring leaves a token in a channel of capacity one.
func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}
