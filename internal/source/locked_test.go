package source

import (
	"testing"
	"time"
)

// Rows that are locked one after the other must not keep a key left out whose
// row was unlocked long ago.
func TestLaterLocksDoNotPutOffEarlierKeys(t *testing.T) {
	c := &Claimer{options: Options{Ordering: OrderKey}}
	c.leaveOut(&rowBatch{leftOut: map[Key]struct{}{{"t", "first"}: {}}})
	until := c.lockedUntil
	time.Sleep(time.Millisecond)
	c.leaveOut(&rowBatch{leftOut: map[Key]struct{}{{"t", "second"}: {}}})
	if !c.lockedUntil.Equal(until) {
		t.Errorf("the first key is left out until %v, and then until %v", until, c.lockedUntil)
	}
	if got := c.withLocked(Exclusion{}, until); len(got.Keys) != 2 {
		t.Errorf("left out are %v, want both keys", got.Keys)
	}
	if got := c.withLocked(Exclusion{}, until.Add(1)); len(got.Keys) != 0 {
		t.Errorf("left out after the time are %v", got.Keys)
	}
}
