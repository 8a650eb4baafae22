package scenario

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"slices"
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
	return Some(t, 1, all...)
}

// Some are those that a test plays of several: n of them, in their order, which
// the seed and the test's name choose.
func Some[T any](t testing.TB, n int, all ...T) []T {
	t.Helper()
	if os.Getenv(LanesVariable) == "all" {
		return all
	}
	seed := Seed(t)
	name := fnv.New64a()
	_, _ = name.Write([]byte(t.Name()))
	random := rand.New(rand.NewPCG(seed, name.Sum64())) //nolint:gosec // repeatable is what is wanted
	chosen := random.Perm(len(all))[:min(n, len(all))]
	slices.Sort(chosen)
	some := make([]T, len(chosen))
	for i, lane := range chosen {
		some[i] = all[lane]
	}
	t.Logf("lanes %s of %d: %s=%d repeats them, %s=all plays all", fmt.Sprint(some), len(all), SeedVariable, seed, LanesVariable)
	return some
}
