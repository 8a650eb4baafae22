package consume

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	b := Backoff{Initial: 100 * time.Millisecond, Max: time.Second, Multiplier: 2, Jitter: 0.5}
	for _, test := range []struct {
		n      int
		random float64
		want   time.Duration
	}{
		{1, 0.5, 100 * time.Millisecond}, {2, 0.5, 200 * time.Millisecond}, {4, 0.5, 800 * time.Millisecond},
		{5, 0.5, time.Second}, {100_000, 0.5, time.Second},
		{1, 0, 50 * time.Millisecond}, {5, 1, 1500 * time.Millisecond},
	} {
		if got := b.pause(test.n, test.random); got != test.want {
			t.Errorf("pause(%d, %v) = %s, want %s", test.n, test.random, got, test.want)
		}
	}
}
