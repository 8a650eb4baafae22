package scenario

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"testing"
)

// LanesVariable names the environment variable that, set to all, has tests play
// all of their lanes.
const LanesVariable = "RELAY_TEST_LANES"

// Lanes are those that a test plays of several that differ in a setting alone:
// one, which the seed and the test's name choose, so that a run plays every
// scenario and each lane in some of them.
func Lanes[T any](t testing.TB, all ...T) []T {
	t.Helper()
	if os.Getenv(LanesVariable) == "all" {
		return all
	}
	seed := Seed(t)
	name := fnv.New64a()
	_, _ = name.Write([]byte(t.Name()))
	lane := rand.New(rand.NewPCG(seed, name.Sum64())).IntN(len(all)) //nolint:gosec // repeatable is what is wanted
	t.Logf("lane %s of %v: %s=%d repeats it, %s=all plays all", fmt.Sprint(all[lane]), all, SeedVariable, seed, LanesVariable)
	return all[lane : lane+1]
}
