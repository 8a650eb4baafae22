package scenario

import (
	"testing"
	"time"
)

const awaitInterval = 20 * time.Millisecond

// Await polls condition until it is true, and ends the test when that does not
// happen within limit. state is what the failure says about the last look.
func Await(t testing.TB, limit time.Duration, what string, condition func() (done bool, state string)) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		done, state := condition()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s: %s", limit, what, state)
		}
		time.Sleep(awaitInterval)
	}
}
