package source

import (
	"testing"
	"time"
)

func TestShareLeavesShardsForAllWorkers(t *testing.T) {
	now := time.Unix(1, 0)
	for _, test := range []struct{ workers, alone, beside int }{{0, 16, 16}, {1, 16, 16}, {4, 16, 8}, {12, 5, 2}, {64, 1, 1}} {
		s := share{workers: test.workers}
		if got := s.size(now); got != test.alone {
			t.Errorf("%d workers: %d shards a claim, want %d", test.workers, got, test.alone)
		}
		s.saw(now, 1)
		if got := s.size(now.Add(time.Second)); got != test.beside {
			t.Errorf("%d workers beside other relays: %d shards a claim, want %d", test.workers, got, test.beside)
		}
		if got := s.size(now.Add(othersFor)); got != test.alone {
			t.Errorf("%d workers when the others are gone: %d shards a claim, want %d", test.workers, got, test.alone)
		}
	}
}

// Shards of batches that ended since the last look may still be in what the server said.
func TestShareTakesItsOwnShardsForNobodyElses(t *testing.T) {
	now := time.Unix(1, 0)
	s := share{workers: 4}
	s.took(16)
	s.took(16)
	s.took(-16)
	s.saw(now, 32)
	if got := s.size(now); got != 16 {
		t.Errorf("%d shards a claim, want 16: all of them were its own", got)
	}
	s.saw(now, 17) // 16 of its own, and no more since
	if got := s.size(now); got != 8 {
		t.Errorf("%d shards a claim, want 8: somebody else has one", got)
	}
}
