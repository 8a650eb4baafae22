package scenario

import (
	"slices"
	"testing"
)

func TestLanes(t *testing.T) {
	t.Setenv(LanesVariable, "")
	t.Setenv(SeedVariable, "")
	seen := map[string]int{}
	for range 200 {
		lanes := Lanes(t, "strict", "pipelined")
		if len(lanes) != 1 {
			t.Fatalf("expected one lane, got %v", lanes)
		}
		seen[lanes[0]]++
	}
	if seen["strict"] == 0 || seen["pipelined"] == 0 {
		t.Errorf("a lane is never played: %v", seen)
	}
	t.Setenv(SeedVariable, "7")
	first := Lanes(t, "strict", "pipelined")
	for range 10 {
		if again := Lanes(t, "strict", "pipelined"); !slices.Equal(again, first) {
			t.Fatalf("the same seed chose %v and then %v", first, again)
		}
	}
	t.Setenv(LanesVariable, "all")
	if lanes := Lanes(t, "strict", "pipelined"); len(lanes) != 2 {
		t.Errorf("expected all lanes, got %v", lanes)
	}
}

func TestSomeLanes(t *testing.T) {
	t.Setenv(LanesVariable, "")
	t.Setenv(SeedVariable, "")
	seen := map[int]bool{}
	for range 200 {
		some := Some(t, 2, 1, 2, 3, 4)
		if len(some) != 2 || some[0] >= some[1] {
			t.Fatalf("expected two different lanes in their order, got %v", some)
		}
		seen[some[0]], seen[some[1]] = true, true
	}
	if len(seen) != 4 {
		t.Errorf("a lane is never played: %v", seen)
	}
	if some := Some(t, 9, 1, 2); len(some) != 2 {
		t.Errorf("expected what there is, got %v", some)
	}
}
