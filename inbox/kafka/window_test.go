package kafka

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/internal/consume"
)

// TestWindow settles messages in any order: what is committed never passes one
// that is not settled, and never goes back.
func TestWindow(t *testing.T) {
	var committed int64
	w := newWindow(100, 50, func() int { return 1 << 20 }, func(offset int64) {
		if offset <= committed {
			t.Errorf("%d after %d", offset, committed)
		}
		committed = offset
	})
	item := func(offset int64) *consume.Item {
		return &consume.Item{Message: inbox.Message{Source: inbox.KafkaSource("orders", 0, offset)}}
	}
	var open []int64
	next := int64(100)
	for range 10_000 {
		if len(open) > 0 && (len(w.entries) == 50 || rand.IntN(2) == 0) {
			n := rand.IntN(len(open))
			if len(w.entries) == 50 {
				n = 0
			}
			w.settle(item(open[n]))
			open = slices.Delete(open, n, n+1)
		} else {
			next += rand.Int64N(3) // compacted away
			w.add(t.Context(), item(next))
			open = append(open, next)
			next++
			if rand.IntN(10) == 0 {
				next += 2
				w.pass(next)
			}
		}
		if want := slices.Min(append(slices.Clone(open), next)); committed > want {
			t.Fatalf("committed %d, but %d is not settled", committed, want)
		}
	}
	for _, offset := range open {
		w.settle(item(offset))
	}
	w.pass(next + 5)
	if committed != next+5 || len(w.entries) != 0 || w.held != 0 {
		t.Errorf("committed %d of %d, %d entries, %d bytes", committed, next+5, len(w.entries), w.held)
	}
}

// TestWindowIsBounded waits for room, by number and by size; one message always
// has it.
func TestWindowIsBounded(t *testing.T) {
	w := newWindow(0, 3, func() int { return 10_000 }, func(int64) {})
	item := func(offset int64, size int) *consume.Item {
		return &consume.Item{Message: inbox.Message{Payload: make([]byte, size), Source: inbox.KafkaSource("orders", 0, offset)}}
	}
	ended, end := context.WithCancel(t.Context())
	end()
	large, small := item(0, 50_000), item(1, 1)
	if w.add(ended, large); len(w.entries) != 1 {
		t.Error("a message that is larger than the window is not taken")
	}
	if w.add(ended, small); len(w.entries) != 1 {
		t.Error("another one is taken beside it")
	}
	w.settle(large)
	for n := range 4 {
		w.add(ended, item(int64(n)+1, 1))
	}
	if len(w.entries) != 3 {
		t.Errorf("%d messages are taken, want 3", len(w.entries))
	}
}
