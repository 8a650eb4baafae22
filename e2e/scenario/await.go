package scenario

import (
	"testing"
	"time"
)

// Between two looks there is a pause of awaitInterval or, when a look takes
// long, so much more that looking takes a tenth of the time and not the
// processor from what is waited for.
const (
	awaitInterval    = 20 * time.Millisecond
	awaitIntervalMax = 500 * time.Millisecond
)

// Await polls condition until it is true, and ends the test when that does not
// happen within limit. state is what the failure says about the last look.
func Await(t testing.TB, limit time.Duration, what string, condition func() (done bool, state string)) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		began := time.Now()
		done, state := condition()
		took := time.Since(began)
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s: %s", limit, what, state)
		}
		time.Sleep(min(max(awaitInterval, 10*took), awaitIntervalMax))
	}
}
