package delivery

import "time"

const (
	// busyPause is what a relay waits when it took all that was pending: long
	// enough to let some rows gather, and as short as a broker's round trip.
	busyPause = 4 * time.Millisecond
	// busyMax bounds the pauses while rows keep coming.
	busyMax = 5 * time.Millisecond
	// busyFor is how long after the last row a relay counts as busy.
	busyFor = time.Second
)

// pace decides how long to wait before the next claim: not at all while
// batches are full, some milliseconds while rows keep coming, and ever longer,
// up to the poll interval, when idle.
type pace struct {
	pollInterval time.Duration
	wait         time.Duration
	lastRows     time.Time
}

// after returns the wait after a claim that found rows, or none.
func (p *pace) after(now time.Time, rows, full bool) time.Duration {
	switch {
	case full:
		p.lastRows, p.wait = now, 0
	case rows:
		p.lastRows, p.wait = now, busyPause
	default:
		limit := p.pollInterval
		if now.Sub(p.lastRows) < busyFor {
			limit = busyMax
		}
		p.wait = max(2*p.wait, busyPause)
		p.wait = min(p.wait, limit)
	}
	return min(p.wait, p.pollInterval)
}
