package source

import (
	"math"
	"slices"
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
	a.looked(a.now.Add(time.Hour), &question{full: a.full}, 0)
	a.full, a.nextLook = span{0, Shards}, time.Time{}
	return a
}

// look tells what is pending in shard 7, 0 for nothing, what a walk along it finds, and who writes.
func (a *asker) look(t *testing.T, id int64, walk []walked, writers ...writer) {
	t.Helper()
	a.now = a.now.Add(writersPause)
	q := a.next(a.now)
	if !q.ask || !q.full.empty() {
		t.Fatalf("ask %t, full %v", q.ask, q.full)
	}
	pending := map[int]int64{}
	if id != 0 {
		pending[7] = id
	}
	// Only shard 7 is of interest.
	q.walks = slices.DeleteFunc(q.walks, func(w walkOf) bool { return w.shard != 7 })
	a.answered(a.now, &q, pending, sum(len(q.walks), walk), writers)
}

type walkOf = walk

func named(names ...string) (writers []writer) {
	for _, name := range names {
		writers = append(writers, writer{name: name})
	}
	return writers
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
		if a.look(t, step.lowest, nil, named(step.writers...)...); a.base[7] != step.want || a.lifted[7] != step.want {
			t.Errorf("step %d: the floors are %d and %d, want %d", i, a.base[7], a.lifted[7], step.want)
		}
	}
}

func TestNothingIsAskedWhereNothingChanges(t *testing.T) {
	a := newAsker()
	a.saw(7, 10)
	for range 3 {
		a.now = a.now.Add(writersPause)
		if q := a.next(a.now); q.ask {
			a.answered(a.now, &q, nil, sum(len(q.walks), nil), nil)
		}
	}
	if q := a.next(a.now.Add(time.Minute)); q.ask {
		t.Error("asked although every floor is as high as it can be")
	}
	a.saw(allShards, 11)
	if q := a.next(a.now.Add(time.Minute)); !q.ask {
		t.Error("not asked after rows were seen")
	}
}

func TestRowBelowItsFloorStartsThemAgain(t *testing.T) {
	a := newAsker()
	a.saw(7, 100)
	for range 2 {
		a.look(t, 0, nil)
	}
	if a.base[7] != 100 {
		t.Fatalf("the floor is %d", a.base[7])
	}
	// The table was emptied and its ids began again.
	a.answered(a.now, &question{full: span{0, Shards}}, map[int]int64{7: 1}, nil, nil)
	if a.base[7] != math.MinInt64 || a.lifted[7] != math.MinInt64 || a.seen[7] != math.MinInt64 {
		t.Errorf("the floors are %d and %d, seen %d", a.base[7], a.lifted[7], a.seen[7])
	}
}

// A transaction with an id that runs for long is passed, and when it ends the floors go back to where
// they were when it may have begun.
func TestWriterThatRunsForLongIsPassedAndOwed(t *testing.T) {
	a := newAsker()
	a.saw(7, 10)
	for range 2 {
		a.look(t, 0, nil)
	}
	long := writer{name: "3/7", xid: "700"}
	a.saw(7, 20)
	a.look(t, 0, nil, long)
	for a.now.Sub(a.since) < passAfter-writersPause {
		a.look(t, 0, nil, long)
		if a.base[7] != 10 || len(a.debts) != 0 {
			t.Fatalf("floor %d, debts %v after %s", a.base[7], a.debts, a.now.Sub(a.since))
		}
	}
	for range 2 { // complete, and looked at
		a.look(t, 0, nil, long)
	}
	if a.base[7] != 20 || !slices.Equal(a.xids(), []string{"700"}) {
		t.Fatalf("floor %d, debts %v", a.base[7], a.xids())
	}
	// Others come and go as if it was not there.
	a.saw(7, 30)
	for range 3 {
		a.look(t, 0, nil, long)
	}
	if a.base[7] != 30 {
		t.Errorf("the floor is %d beside the long transaction, want 30", a.base[7])
	}
	// It has ended. What this look read may be from before.
	a.look(t, 0, nil)
	if a.base[7] != 10 || a.lifted[7] != 10 || len(a.debts) != 0 {
		t.Fatalf("floors %d and %d, debts %v", a.base[7], a.lifted[7], a.xids())
	}
	a.look(t, 15, nil)
	if a.base[7] != 14 {
		t.Errorf("the floor is %d, want it below the long transaction's row 15", a.base[7])
	}
}

// One without an id may end unseen between two looks.
func TestWriterWithoutAnIDIsNotPassed(t *testing.T) {
	a := newAsker()
	a.saw(7, 20)
	a.look(t, 0, nil, named("3/7")...)
	for a.now.Sub(a.since) < 3*passAfter {
		a.look(t, 0, nil, named("3/7")...)
	}
	if a.base[7] != math.MinInt64 || len(a.debts) != 0 {
		t.Errorf("floor %d, debts %v", a.base[7], a.xids())
	}
}

// restricted returns an asker whose shard 7 has row 5 waiting for long and everything up to 1000 complete.
func restricted(t *testing.T) *asker {
	t.Helper()
	a := newAsker()
	a.restricted = true
	a.nextSweep = a.now.Add(time.Hour)
	a.saw(7, 1000)
	a.look(t, 5, nil)
	a.base[7], a.lifted[7] = 4, 4
	return a
}

func leftOut(first, last int64) (rows []walked) {
	for id := first; id <= last; id++ {
		rows = append(rows, walked{id: id, leftOut: true})
	}
	return rows
}

func TestLiftedFloorRisesOverWhatIsLeftOut(t *testing.T) {
	a := restricted(t)
	next := int64(5)
	for range 2 { // 16 and 128 rows
		rows := int64(a.walks[7])
		a.look(t, 5, leftOut(next, next+rows-1))
		next += rows
		if a.lifted[7] != next-1 || a.base[7] != 4 {
			t.Fatalf("floors %d and %d, want 4 and %d", a.base[7], a.lifted[7], next-1)
		}
	}
	a.look(t, 5, append(leftOut(next, 299), walked{id: 300}, walked{id: 301, leftOut: true}))
	if a.lifted[7] != 299 {
		t.Errorf("it rose to %d, past row 300, which a claim takes", a.lifted[7])
	}
	a.look(t, 5, leftOut(301, 303))
	if a.lifted[7] != 1000 {
		t.Errorf("it rose to %d, want 1000: nothing else is there", a.lifted[7])
	}
	a.drop()
	if a.lifted[7] != 4 {
		t.Errorf("it is %d when less is left out, want 4", a.lifted[7])
	}
}

func TestLiftedFloorStopsAtRowsThatAreNotComplete(t *testing.T) {
	a := restricted(t)
	a.walks[7] = 3
	a.look(t, 5, []walked{{id: 999, leftOut: true}, {id: 1000, leftOut: true}, {id: 1001, leftOut: true}})
	if a.lifted[7] != 1000 || a.seen[7] != 1001 {
		t.Errorf("lifted %d, seen %d", a.lifted[7], a.seen[7])
	}
}

func TestLiftedFloorStopsAtRowsThatAreDrained(t *testing.T) {
	a := restricted(t)
	a.look(t, 5, []walked{{id: 5, leftOut: true}, {id: 6, draining: true}})
	if a.lifted[7] != 5 {
		t.Errorf("lifted %d, want 5", a.lifted[7])
	}
}

// A row below the lifted floor that nothing leaves out any more is found by a sweep.
func TestSweepFindsRowsBelowTheLiftedFloor(t *testing.T) {
	a := restricted(t)
	a.look(t, 5, leftOut(5, 6))
	if a.lifted[7] != 1000 {
		t.Fatalf("lifted %d", a.lifted[7])
	}
	sweep := func(rows ...walked) {
		t.Helper()
		a.nextSweep, a.nextFullLook = a.now, a.now
		q := a.next(a.now)
		i := slices.IndexFunc(q.walks, func(w walkOf) bool { return w.sweep })
		if i < 0 || q.walks[i].shard != 7 || q.walks[i].floor != 4 {
			t.Fatalf("it walks %v", q.walks)
		}
		q.walks = q.walks[i:]
		a.answered(a.now, &q, map[int]int64{7: 5}, sum(len(q.walks), rows), nil)
	}
	sweep(walked{id: 5, leftOut: true}, walked{id: 6, draining: true}, walked{id: 1001})
	if a.lifted[7] != 1000 {
		t.Errorf("lifted %d, want 1000", a.lifted[7])
	}
	sweep(walked{id: 5, leftOut: true}, walked{id: 6})
	if a.lifted[7] != 5 {
		t.Errorf("lifted %d, want 5", a.lifted[7])
	}
}

func TestSlowFullLooksAreRareAndLookAtLess(t *testing.T) {
	f := newFloors()
	now := time.Unix(1, 0)
	full := func() span { return f.next(now).full }
	looked := func(took time.Duration) { f.looked(now, &question{full: f.full}, took) }
	if got := full(); got != (span{0, Shards}) {
		t.Errorf("the first look is at %v", got)
	}
	looked(500 * time.Millisecond)
	now = now.Add(9 * time.Second)
	if got := full(); !got.empty() {
		t.Error("a second full look within 20 times its duration")
	}
	now = now.Add(time.Second)
	if got := full(); got != (span{0, Shards / 2}) {
		t.Errorf("the second look is at %v", got)
	}
	looked(lookPause)
	now = now.Add(fullLookInterval)
	if got := full(); got != (span{Shards / 2, Shards}) {
		t.Errorf("the third look is at %v", got)
	}
	looked(0)
	now = now.Add(fullLookInterval)
	if got := full(); got != (span{0, Shards}) {
		t.Errorf("the fourth look is at %v", got)
	}
}

// A look that takes too long becomes smaller, and where that is impossible may take longer.
func TestLookThatFailsBecomesSmaller(t *testing.T) {
	f := newFloors()
	now := time.Unix(1, 0)
	f.saw(7, 10)
	for shards := Shards; ; shards /= 2 {
		q := f.next(now)
		if !q.ask || q.shards.last-q.shards.first != shards {
			t.Fatalf("it looks at %v, want %d shards", q.shards, shards)
		}
		f.failed(now, &q)
		if q := f.next(now.Add(lookLimit)); q.ask {
			t.Fatal("it is tried again at once")
		}
		now = now.Add(time.Minute)
		if shards == 1 {
			break
		}
	}
	if f.limit != 2*lookLimit {
		t.Errorf("a look at one shard may take %s", f.limit)
	}
}
