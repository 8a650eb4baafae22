package consume

import (
	"cmp"
	"math"
	"math/rand/v2"
	"time"
)

// Backoff is a growing pause.
type Backoff struct {
	// Initial is the first pause (200 ms by default), Max the longest (30 s).
	Initial, Max time.Duration
	// Multiplier is the growth from one to the next; 2 by default.
	Multiplier float64
	// Jitter is the part of the pause by which it varies at random: 0.2, the
	// default, varies it by up to 20 % in either direction; negative is none.
	Jitter float64
}

// WithDefaults fills in what is zero.
func (b Backoff) WithDefaults() Backoff {
	b.Initial = cmp.Or(b.Initial, 200*time.Millisecond)
	b.Max = cmp.Or(b.Max, 30*time.Second)
	b.Multiplier = cmp.Or(b.Multiplier, 2)
	b.Jitter = max(cmp.Or(b.Jitter, 0.2), 0)
	return b
}

// Pause returns the nth pause, counted from one.
func (b Backoff) Pause(n int) time.Duration {
	return b.pause(n, rand.Float64()) //nolint:gosec // not a secret
}

// pause: random is in [0, 1).
func (b Backoff) pause(n int, random float64) time.Duration {
	d := float64(b.Initial) * math.Pow(b.Multiplier, float64(n-1))
	d = min(d, float64(b.Max)) // also for an infinite one
	d *= 1 + b.Jitter*(2*random-1)
	return time.Duration(d)
}
