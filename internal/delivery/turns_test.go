package delivery

import (
	"testing"
	"time"
)

func TestTurnThatFoundNoneAndWasNotInVainDoesNotPause(t *testing.T) {
	var turns turns
	now := time.Now()
	for range 20 { // the pause is at its longest
		turns.claimed(now, false)
	}
	if wait := turns.wait(now, now.Add(-time.Minute)); wait != heldPauseMax {
		t.Errorf("the wait is %v after claims in vain, want %v", wait, heldPauseMax)
	}
	if wait := turns.wait(now, time.Time{}); wait != 0 {
		t.Errorf("the wait is %v although there is more to do, want none", wait)
	}
}
