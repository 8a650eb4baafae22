// Package window bounds what a stream has in flight.
package window

import (
	"context"
	"sync"

	"github.com/outboxrelay/relay/sinks"
)

// Window is the room of a stream. One goroutine at a time enters; any may leave. A nil
// Window has no bound.
type Window struct {
	limit sinks.Window

	mu              sync.Mutex
	messages, bytes int
	left            chan struct{} // capacity 1: look again
}

// New returns an empty window.
func New(limit sinks.Window) *Window {
	if limit == (sinks.Window{}) {
		return nil
	}
	return &Window{limit: limit, left: make(chan struct{}, 1)}
}

// Enter waits until there is room for a batch. It fails when ctx ends before that.
func (w *Window) Enter(ctx context.Context, messages []sinks.Message) (Share, error) {
	if w == nil {
		return Share{}, nil
	}
	s := Share{window: w, messages: len(messages)}
	if w.limit.Bytes > 0 {
		for i := range messages {
			s.bytes += messages[i].Size()
		}
	}
	for !w.admits(s) {
		select {
		case <-w.left:
		case <-ctx.Done():
			return Share{}, ctx.Err()
		}
	}
	return s, nil
}

// admits takes the share if there is room for it.
func (w *Window) admits(s Share) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	full := w.limit.Messages > 0 && w.messages+s.messages > w.limit.Messages ||
		w.limit.Bytes > 0 && w.bytes+s.bytes > w.limit.Bytes
	if full && w.messages > 0 {
		return false
	}
	w.messages += s.messages
	w.bytes += s.bytes
	return true
}

// Share is a batch's part of a window.
type Share struct {
	window          *Window
	messages, bytes int
}

// Leave gives the room back; a share that was never taken has none.
func (s Share) Leave() {
	if s.window == nil {
		return
	}
	s.window.mu.Lock()
	s.window.messages -= s.messages
	s.window.bytes -= s.bytes
	s.window.mu.Unlock()
	select {
	case s.window.left <- struct{}{}:
	default:
	}
}
