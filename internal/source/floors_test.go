package source

import (
	"testing"
	"time"
)

func TestFloorWaitsForWriters(t *testing.T) {
	var f floors
	now := time.Unix(1, 0)
	ask := func(writers ...string) int64 {
		t.Helper()
		now = now.Add(writersInterval)
		_, ask := f.begin(now, 0)
		if !ask {
			t.Fatal("the writers are not asked for")
		}
		f.answered(writers)
		return f.floor[7]
	}
	f.reach(0, 7, 10)
	for i, step := range []struct {
		writers []string
		reach   int64
		want    int64
	}{
		{[]string{"a", "b"}, 20, 0}, // position 10 waits for a and b
		{[]string{"b", "c"}, 30, 0}, // b is still there
		{[]string{"c"}, 40, 10},     // position 30 waits for c, who was there when it was reached
		{[]string{"c"}, 50, 10},
		{[]string{"d"}, 60, 30}, // position 50 waits for d
		{nil, 70, 60},           // nobody is there: what is reached is a floor
	} {
		if got := ask(step.writers...); got != step.want {
			t.Errorf("step %d: the floor is %d, want %d", i, got, step.want)
		}
		f.reach(0, 7, step.reach)
	}
}

func TestFloorsAreForgottenWithTheExclusion(t *testing.T) {
	var f floors
	now := time.Unix(1, 0)
	f.reach(0, allShards, 10)
	for range 3 {
		now = now.Add(writersInterval)
		f.begin(now, 0)
		f.answered(nil)
	}
	f.looked(now, 0)
	if floor, _ := f.begin(now, 0); floor == nil || floor[63] != 10 {
		t.Fatalf("the floor is %v, want 10", floor)
	}
	if floor, _ := f.begin(now, 1); floor != nil {
		t.Error("no full look after the exclusion changed")
	}
	// An answer to a question from before must not bring the old floor back.
	f.answered(nil)
	f.answered(nil)
	f.looked(now, 0)
	if floor, _ := f.begin(now, 1); floor == nil || *floor != [Shards]int64{} {
		t.Errorf("the floor is %v after a reset", floor)
	}
}

func TestBatchFromBeforeAResetRaisesNoFloor(t *testing.T) {
	var f floors
	now := time.Unix(1, 0)
	claimed := f.epoch
	f.reset() // a held key is wanted again while the batch is under way
	f.reach(claimed, 7, 10)
	for range 3 {
		now = now.Add(writersInterval)
		f.begin(now, 0)
		f.answered(nil)
	}
	f.looked(now, 0)
	if floor, _ := f.begin(now, 0); floor == nil || floor[7] != 0 {
		t.Errorf("the floor is %v, want none", floor)
	}
}

func TestSlowFullLooksAreRare(t *testing.T) {
	var f floors
	now := time.Unix(1, 0)
	f.looked(now, 500*time.Millisecond)
	if floor, _ := f.begin(now.Add(9*time.Second), 0); floor == nil {
		t.Error("a second full look within 20 times its duration")
	}
	if floor, _ := f.begin(now.Add(10*time.Second), 0); floor != nil {
		t.Error("no full look in time")
	}
}
