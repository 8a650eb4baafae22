package source

import (
	"strconv"
	"testing"
)

func TestClaimersLockWhatLockClassSays(t *testing.T) {
	for _, table := range []string{"outbox", `Odd "name"`} {
		claimer := NewClaimer(nil, Options{Schema: "public", Table: table})
		if want := strconv.Itoa(int(LockClass("public", table))); claimer.lockClass != want {
			t.Errorf("%s: a claimer locks in class %s, LockClass says %s", table, claimer.lockClass, want)
		}
	}
}
