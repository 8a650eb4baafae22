package delivery

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	p := pace{pollInterval: 100 * time.Millisecond}
	now := epoch
	step := func(what string, rows, full bool, want time.Duration) {
		t.Helper()
		if got := p.after(now, rows, full); got != want {
			t.Errorf("%s: wait %s, want %s", what, got, want)
		}
	}
	step("a full batch", true, true, 0)
	step("the rest", true, false, 4*time.Millisecond)
	step("nothing, but rows came a moment ago", false, false, 5*time.Millisecond)
	now = now.Add(busyFor - time.Millisecond)
	step("still busy", false, false, 5*time.Millisecond)
	now = now.Add(time.Millisecond)
	for _, want := range []time.Duration{10e6, 20e6, 40e6, 80e6, 100e6, 100e6} {
		step("idle", false, false, want)
	}
	step("rows again", true, false, 4*time.Millisecond)

	p = pace{pollInterval: time.Millisecond}
	step("a poll interval below the busy pause", true, false, time.Millisecond)
	step("and idle", false, false, time.Millisecond)
}
