package main

import (
	"slices"
	"strings"
	"testing"
)

func TestMediansKeepLanesInOrder(t *testing.T) {
	t.Parallel()
	round := func(rate float64) []result {
		return []result{
			{group: "drain", lane: "relay", rate: rate, cpu: [3]float64{rate, 2, 3}},
			{group: "1000/s", lane: "relay", rate: 1000, p50: rate},
			{group: "drain", lane: "Debezium", rate: 2 * rate},
		}
	}
	got := medians(slices.Concat(round(30), round(10), round(20)))
	want := []result{
		{group: "drain", lane: "relay", rate: 20, cpu: [3]float64{20, 2, 3}},
		{group: "drain", lane: "Debezium", rate: 40},
		{group: "1000/s", lane: "relay", rate: 1000, p50: 20},
	}
	if !slices.Equal(got, want) {
		t.Errorf("expected %v, got %v", want, got)
	}
	if even := median(round(10)[:1:1]); even.rate != 10 {
		t.Errorf("the median of one is %v", even.rate)
	}
	if even := median([]result{{rate: 10}, {rate: 20}}); even.rate != 15 {
		t.Errorf("the median of 10 and 20 is %v", even.rate)
	}
}

// Ratios are to the first lane of the group.
func TestTable(t *testing.T) {
	t.Parallel()
	got := table([]result{
		{group: "drain", lane: "relay", rate: 50000, cpu: [3]float64{0.5, 1, 0.25}, peak: 40},
		{group: "drain", lane: "relay, batches of 4000", rate: 60000, cpu: [3]float64{0.34, 1, 0.25}, peak: 50},
		{group: "drain", lane: "Debezium", rate: 25000, cpu: [3]float64{2, 0.5, 0.25}, peak: 600},
		{group: "1000/s", lane: "relay", rate: 1000, p50: 3, p99: 8},
		{group: "1000/s", lane: "Debezium", rate: 1000, p50: 9, p99: 32},
	})
	for _, want := range []string{
		"25000 (×0.50)", "2.00 (×4.00)", "0.50 (×0.50)", "600 (×15.00)",
		"9.0 (×3.00)", "32.0 (×4.00)",
		"relay, batches of 4000: 3.40 CPU-us a row\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "(×1.00)  3.0") || strings.Count(got, "relay") != 4 {
		t.Errorf("the first lane of a group has no ratios:\n%s", got)
	}
}

func TestVariantsOfTwoBuildsAreCompared(t *testing.T) {
	t.Parallel()
	b := &bench{binary: "this", settings: settings{batch: 1000, onPublished: "mark", against: "that"}}
	all := b.variants()
	if len(all) != 6 {
		t.Fatalf("expected 3 lanes of 2 builds, got %v", all)
	}
	for i := 0; i < len(all); i += 2 {
		that, this := all[i], all[i+1]
		if that.binary != "that" || this.binary != "this" {
			t.Errorf("expected the other build first, got %v, %v", that, this)
		}
		that.binary, that.lane = this.binary, this.lane
		if that != this {
			t.Errorf("they differ by more than the build: %v, %v", that, this)
		}
	}
}

func TestDocumentsAreNumbered(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 7, 123456} {
		text := document(n, 200)
		if len(text) != 200 {
			t.Errorf("expected 200 bytes, got %d: %s", len(text), text)
		}
		if got, err := number(text); err != nil || got != n {
			t.Errorf("expected %d, got %d, %v", n, got, err)
		}
	}
	if n, err := number("something else"); err == nil {
		t.Errorf("expected an error, got %d", n)
	}
}

func TestFlagsAreChecked(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]settings{
		"only":    {only: "throughput", lanes: laneRelay},
		"lane":    {lanes: "relay,camel"},
		"rounds":  {lanes: laneRelay, rounds: -1},
		"against": {lanes: laneRelay, against: "/there/is/no/such/relay"},
	} {
		if err := s.complete(); err == nil {
			t.Errorf("%s: no error for %+v", name, s)
		}
	}
	s := settings{lanes: "relay,debezium", against: "/bin/true"}
	if err := s.complete(); err != nil || s.rounds != 3 || s.measures(laneDebezium) {
		t.Errorf("expected three rounds of relays alone, got %+v, %v", s, err)
	}
}
