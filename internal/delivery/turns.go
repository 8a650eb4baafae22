package delivery

import (
	"sync/atomic"
	"time"
)

const (
	// heldPause is the pause after a claim of held back messages that found none
	// although some were due: another relay has them, or their sink is away. It
	// doubles up to heldPauseMax.
	heldPause    = 5 * time.Millisecond
	heldPauseMax = time.Second
	// heldShare bounds what claims of held back messages may take that fail, since
	// the others wait for them: one part in so many.
	heldShare = 5
)

// turns decides when it is the turn of messages that were held back: not twice
// in a row, so that they do not starve the others, and one batch at a time, so
// that a broker that takes its time to refuse them does not either. Its methods
// but ended are for one goroutine.
type turns struct {
	last     bool
	notUntil time.Time
	pause    time.Duration
	underWay atomic.Bool
}

// held reports whether it is their turn, the first of them being due then.
func (t *turns) held(now, due time.Time) bool {
	was := t.last
	t.last = false
	return !was && t.wait(now, due) <= 0 && !t.underWay.Load()
}

// claimed tells what a claim of held back messages found.
func (t *turns) claimed(now time.Time, any bool) {
	t.last = any
	t.underWay.Store(any)
	if any {
		t.pause = 0
		return
	}
	t.pause = min(max(2*t.pause, heldPause), heldPauseMax)
	t.notUntil = now.Add(t.pause)
}

// failed tells that a claim of held back messages failed.
func (t *turns) failed(began, now time.Time) {
	t.claimed(now, false)
	t.notUntil = now.Add(max(t.pause, heldShare*now.Sub(began)))
}

// ended tells that the batch under way was settled.
func (t *turns) ended() { t.underWay.Store(false) }

// wait is how long it is until their turn.
func (t *turns) wait(now, due time.Time) time.Duration {
	if t.underWay.Load() {
		return forever
	}
	if !due.IsZero() && due.Before(t.notUntil) { // zero: the last claim found none, and was not in vain
		due = t.notUntil
	}
	return max(due.Sub(now), 0)
}
