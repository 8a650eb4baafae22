package delivery

import (
	"math"
	"math/rand/v2"
	"time"
)

// pause returns how long to wait after so many failures in a row, from 1.
func (b Backoff) pause(failures int) time.Duration {
	pause := b.mean(failures)
	pause *= 1 + b.Jitter*(2*rand.Float64()-1)
	return time.Duration(max(pause, 0))
}

// longest returns the longest pause after so many failures, none after none.
func (b Backoff) longest(failures int) time.Duration {
	if failures == 0 {
		return 0
	}
	return time.Duration(b.mean(failures) * (1 + b.Jitter))
}

func (b Backoff) mean(failures int) float64 {
	pause := float64(b.Initial) * math.Pow(b.Multiplier, float64(max(failures-1, 0)))
	return min(pause, float64(b.Max)) // also where Pow gave infinity
}
