package source

import (
	"math"
	"testing"
	"time"
)

// asker plays a claimer's questions.
type asker struct {
	floors
	now time.Time
}

func newAsker() *asker {
	a := &asker{floors: newFloors(), now: time.Unix(1, 0)}
	a.looked(a.now.Add(time.Hour), 0)
	return a
}

// ask tells what is pending in shard 7, 0 for nothing, and returns its floor.
func (a *asker) ask(t *testing.T, id int64, writers ...string) int64 {
	t.Helper()
	a.now = a.now.Add(writersPause)
	if ask, full := a.begin(a.now); !ask || !full.empty() {
		t.Fatalf("ask %t, full %v", ask, full)
	}
	pending := map[int]lowest{}
	if id != 0 {
		pending[7] = lowest{id: id}
	}
	a.answered(span{}, pending, writers)
	return a.floor[7]
}

func TestFloorWaitsForWritersAndThenForALook(t *testing.T) {
	a := newAsker()
	for i, step := range []struct {
		saw, lowest int64
		writers     []string
		want        int64
	}{
		{10, 0, []string{"a", "b"}, math.MinInt64},           // 10 waits for a and b
		{20, 0, []string{"b", "c"}, math.MinInt64},           // b is still there
		{30, 0, []string{"c"}, math.MinInt64},                // 10 is complete, 30 waits for c, who was there when it was seen
		{40, 5, []string{"c"}, 4},                            // b's row 5 had committed late, and no claim has seen it
		{40, 0, []string{"c"}, 10},                           // now it was published
		{50, 0, nil, 10},                                     // nobody is there: 50 is complete
		{50, 45, nil, 44},                                    // 45 is under way, here or elsewhere
		{50, 0, []string{"d"}, 50},                           //
		{60, 0, []string{"-1/700"}, 50},                      // a prepared transaction
		{60, 0, []string{"-1/701"}, 50},                      // perhaps the same one
		{60, 0, nil, 50}, {60, 0, nil, 60}, {61, 0, nil, 60}, //
	} {
		a.saw(7, step.saw)
		if got := a.ask(t, step.lowest, step.writers...); got != step.want {
			t.Errorf("step %d: the floor is %d, want %d", i, got, step.want)
		}
	}
}

func TestNothingIsAskedWhereNothingChanges(t *testing.T) {
	a := newAsker()
	a.saw(7, 10)
	for range 3 {
		a.now = a.now.Add(writersPause)
		if ask, _ := a.begin(a.now); ask {
			a.answered(span{}, nil, nil)
		}
	}
	if ask, _ := a.begin(a.now.Add(time.Minute)); ask {
		t.Error("asked although every floor is as high as it can be")
	}
	a.saw(allShards, 11)
	if ask, _ := a.begin(a.now.Add(time.Minute)); !ask {
		t.Error("not asked after rows were seen")
	}
}

func TestRowBelowItsFloorStartsThemAnew(t *testing.T) {
	a := newAsker()
	a.saw(7, 100)
	for range 2 {
		a.ask(t, 0)
	}
	if a.floor[7] != 100 {
		t.Fatalf("the floor is %d", a.floor[7])
	}
	// The table was emptied and its ids began anew.
	a.answered(span{0, Shards}, map[int]lowest{7: {id: 1}}, nil)
	if a.floor[7] != math.MinInt64 || a.seen[7] != math.MinInt64 {
		t.Errorf("the floor is %d, seen %d", a.floor[7], a.seen[7])
	}
}

func TestRowThatIsDrainedBelowItsFloorDoesNotStartThemAnew(t *testing.T) {
	a := newAsker()
	a.saw(7, 100)
	for range 2 {
		a.ask(t, 0)
	}
	a.answered(span{0, Shards}, map[int]lowest{7: {id: 1, draining: true}}, nil)
	if a.floor[7] != 100 {
		t.Errorf("the floor is %d, want 100", a.floor[7])
	}
}

func TestSlowFullLooksAreRareAndLookAtLess(t *testing.T) {
	f := newFloors()
	now := time.Unix(1, 0)
	if ask, full := f.begin(now); !ask || full != (span{0, Shards}) {
		t.Errorf("the first look is at %v", full)
	}
	f.looked(now, 500*time.Millisecond)
	if _, full := f.begin(now.Add(9 * time.Second)); !full.empty() {
		t.Error("a second full look within 20 times its duration")
	}
	now = now.Add(10 * time.Second)
	if _, full := f.begin(now); full != (span{0, Shards / 2}) {
		t.Errorf("the second look is at %v", full)
	}
	f.looked(now, fullLookPause)
	now = now.Add(fullLookInterval)
	if _, full := f.begin(now); full != (span{Shards / 2, Shards}) {
		t.Errorf("the third look is at %v", full)
	}
	f.looked(now, 0)
	if _, full := f.begin(now.Add(fullLookInterval)); full != (span{0, Shards}) {
		t.Errorf("the fourth look is at %v", full)
	}
}
