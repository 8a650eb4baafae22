package kafka

import (
	"context"
	"sync"

	"github.com/outboxrelay/relay/inbox/internal/consume"
)

const (
	// maxAhead bounds how many messages of a partition may be settled, or at
	// work, behind one that is not settled: after a crash they come again.
	maxAhead = 10_000
	// overhead is roughly what a message takes in memory beside its contents.
	overhead = 500
)

// window is the part of a partition that is being processed: the messages from
// the first one that is not settled on. They may be settled in any order; the
// offset that is committed only passes what is settled without a gap.
type window struct {
	// ahead and bytes bound it: the messages, and the contents of those that are
	// not settled, though one is always taken.
	ahead int
	bytes func() int
	// advanced is called with each new first offset, one call at a time.
	advanced func(offset int64)

	mu sync.Mutex
	// entries are the messages, by their offsets. next is the offset behind all
	// of them.
	entries []entry
	next    int64
	held    int
	// room is closed, and replaced, when something was settled.
	room chan struct{}
}

type entry struct {
	offset  int64
	size    int
	settled bool
}

func newWindow(next int64, ahead int, bytes func() int, advanced func(int64)) *window {
	return &window{ahead: ahead, bytes: bytes, advanced: advanced, next: next, room: make(chan struct{})}
}

func sizeOf(item *consume.Item) int { return len(item.Key) + len(item.Payload) + overhead }

// add takes a message in, when there is room. It returns false when ctx has ended
// before.
func (w *window) add(ctx context.Context, item *consume.Item) bool {
	size := sizeOf(item)
	for {
		w.mu.Lock()
		if len(w.entries) < w.ahead && (w.held == 0 || w.held+size <= w.bytes()) {
			w.entries = append(w.entries, entry{offset: item.Source.Offset, size: size})
			w.next = item.Source.Offset + 1
			w.held += size
			w.mu.Unlock()
			return ctx.Err() == nil
		}
		room := w.room
		w.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return false
		}
	}
}

// settle says that messages are settled.
func (w *window) settle(items ...*consume.Item) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, item := range items {
		low, high := 0, len(w.entries)
		for low < high {
			if middle := (low + high) / 2; w.entries[middle].offset < item.Source.Offset {
				low = middle + 1
			} else {
				high = middle
			}
		}
		w.entries[low].settled = true
		w.held -= w.entries[low].size
	}
	before := len(w.entries)
	for len(w.entries) > 0 && w.entries[0].settled {
		w.entries = w.entries[1:]
	}
	if len(w.entries) < before {
		w.advanced(w.first())
	}
	close(w.room)
	w.room = make(chan struct{})
}

// first is the offset of the first message that is not settled.
func (w *window) first() int64 {
	if len(w.entries) > 0 {
		return w.entries[0].offset
	}
	return w.next
}

// pass says that there is no further message below offset.
func (w *window) pass(offset int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if offset > w.next {
		w.next = offset
		if len(w.entries) == 0 {
			w.advanced(offset)
		}
	}
}

// drain waits until all messages are settled, or ctx has ended.
func (w *window) drain(ctx context.Context) {
	for ctx.Err() == nil {
		w.mu.Lock()
		left, room := len(w.entries), w.room
		w.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-room:
		case <-ctx.Done():
		}
	}
}

// reset goes on at an offset, after drain.
func (w *window) reset(offset int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next = offset
}
