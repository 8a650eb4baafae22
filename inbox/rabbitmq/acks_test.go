package rabbitmq

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// frames is a broker's view of a channel: what is unacknowledged.
type frames struct {
	t      *testing.T
	open   map[uint64]bool
	frames []string
}

func (f *frames) Ack(tag uint64, multiple bool) error {
	if !f.open[tag] {
		f.t.Errorf("ack of tag %d, which is not unacknowledged: the broker closes the channel", tag)
	}
	for other := range f.open {
		if other == tag || multiple && other < tag {
			delete(f.open, other)
		}
	}
	f.frames = append(f.frames, fmt.Sprintf("ack %d %v", tag, multiple))
	return nil
}

func (f *frames) Nack(tag uint64, multiple, requeue bool) error {
	f.frames = append(f.frames, fmt.Sprintf("nack %d %v %v", tag, multiple, requeue))
	delete(f.open, tag)
	return nil
}

func (f *frames) Reject(uint64, bool) error { panic("not used") }

func newFrames(t *testing.T, n uint64) *frames {
	f := &frames{t: t, open: make(map[uint64]bool)}
	for tag := uint64(1); tag <= n; tag++ {
		f.open[tag] = true
	}
	return f
}

func TestAcks(t *testing.T) {
	f := newFrames(t, 10)
	a := newAcks(f, 0)
	for _, err := range []error{
		a.ack(1), a.ack(2, 3, 4), a.ack(7, 6), a.requeue(5), a.ack(8, 10), a.ack(9),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"ack 1 false", "ack 4 true", "ack 6 false", "ack 7 false", "nack 5 false true", "ack 8 false", "ack 10 false", "ack 9 false"}
	if !slices.Equal(f.frames, want) {
		t.Errorf("got  %q\nwant %q", f.frames, want)
	}
	if len(a.above) != 0 || a.floor != 10 {
		t.Errorf("floor %d, above %v: want 10 and none", a.floor, a.above)
	}
}

// TestAcksCoverNobodyElse settles tags in random groups: each is acknowledged
// when it is in a group, or a few later, and never before.
func TestAcksCoverNobodyElse(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		const n = 60
		f := newFrames(t, n)
		patient := int(seed % 3 * 10)
		a := newAcks(f, patient)
		order := random.Perm(n)
		if seed%2 == 0 { // nearly in order, as workers are
			slices.SortFunc(order, func(x, y int) int { return x/8 - y/8 })
		}
		pending := make(map[uint64]bool)
		for tag := range f.open {
			pending[tag] = true
		}
		for len(order) > 0 {
			size := min(1+random.IntN(9), len(order))
			var tags []uint64
			for _, i := range order[:size] {
				tags = append(tags, uint64(i+1))
				delete(pending, uint64(i+1))
			}
			order = order[size:]
			if err := a.ack(tags...); err != nil {
				t.Fatal(err)
			}
			if len(order) == 0 {
				if err := a.flush(); err != nil {
					t.Fatal(err)
				}
			}
			late := len(f.open) - len(pending)
			for tag := range uint64(n + 1) {
				if pending[tag] && !f.open[tag] || late > patient || late > 0 && len(order) == 0 {
					t.Fatalf("seed %d, after %v: tag %d is unacknowledged: %v, want %v; frames %q", seed, tags, tag, f.open[tag], pending[tag], f.frames)
				}
			}
		}
	}
}
