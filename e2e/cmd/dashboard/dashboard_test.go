package main

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/outboxrelay/relay/e2e/servers"
)

const chartFiles = "../../../deploy/helm/outbox-relay/files"

// Prometheus' own parser reads every query of the dashboard.
func TestQueriesParse(t *testing.T) {
	t.Parallel()
	board, err := readDashboard(filepath.Join(chartFiles, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var rules []any
	for _, p := range board.graphs() {
		for _, target := range p.Targets {
			expr, err := board.expand(target.Expr, 30*time.Second, 15*time.Second)
			if err != nil {
				t.Fatalf("panel %q: %v", p.Title, err)
			}
			rules = append(rules, map[string]any{"record": "panel:query", "expr": expr, "labels": map[string]any{"panel": p.Title, "n": len(rules)}})
		}
	}
	if len(rules) < 15 {
		t.Errorf("only %d queries were found", len(rules))
	}
	if output, err := check(t, rules); err != nil {
		t.Errorf("promtool: %v\n%s", err, output)
	}
	// And it would tell.
	if output, err := check(t, []any{map[string]any{"record": "a", "expr": "sum(rate(x[5m])"}}); err == nil {
		t.Errorf("promtool takes what is no query: %s", output)
	}
}

func check(t *testing.T, rules []any) (string, error) {
	t.Helper()
	dir, err := servers.Prometheus(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	content, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "panels", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	output, err := exec.CommandContext(t.Context(), filepath.Join(dir, "promtool"), "check", "rules", file).CombinedOutput()
	return string(output), err
}

func TestUnknownVariable(t *testing.T) {
	t.Parallel()
	if expr, err := new(dashboard).expand(`up{job="$job"}`, time.Second, time.Second); err == nil {
		t.Errorf("expanded to %s", expr)
	}
}

func TestFormat(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		value float64
		unit  string
		want  string
	}{
		{0, "s", "0 s"}, {0.00025, "s", "250 µs"}, {0.25, "s", "250 ms"}, {107.3, "s", "107 s"}, {600, "s", "10 min"},
		{14400, "s", "4 h"}, {5432, "short", "5.43k"}, {999, "short", "999"}, {1.5, "ops", "1.5/s"}, {2e6, "short", "2M"},
	} {
		if got := format(test.value, test.unit); got != test.want {
			t.Errorf("%g in %s: %q, want %q", test.value, test.unit, got, test.want)
		}
	}
}

func TestTicks(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		top  float64
		unit string
		want []float64
	}{
		{1, "short", []float64{0, 0.5, 1}}, {5400, "short", []float64{0, 2000, 4000, 6000}},
		{0, "short", []float64{0, 0.5, 1}}, {math.NaN(), "s", []float64{0, 0.5, 1}}, {900, "s", []float64{0, 300, 600, 900}},
	} {
		if got := ticks(test.top, test.unit); !slices.Equal(got, test.want) {
			t.Errorf("up to %g: %v, want %v", test.top, got, test.want)
		}
	}
}

// A line is interrupted where there are no values.
func TestGap(t *testing.T) {
	t.Parallel()
	from := time.Unix(0, 0)
	w := window{from: from, to: from.Add(time.Minute), step: time.Second}
	values := func(seconds ...int) (all []sample) {
		for _, s := range seconds {
			all = append(all, sample{from.Add(time.Duration(s) * time.Second), 1})
		}
		return all
	}
	for _, test := range []struct {
		samples []sample
		want    int
	}{
		{values(1, 2, 3), 1}, {values(1, 2, 30, 31), 2}, {append(values(1), sample{from, math.NaN()}), 1}, {nil, 0},
	} {
		p := &plot{width: 100, height: 100, window: w, top: 1}
		p.line(series{samples: test.samples}, "red")
		if got := strings.Count(p.svg.String(), "<polyline"); got != test.want {
			t.Errorf("%v: %d lines, want %d", test.samples, got, test.want)
		}
	}
}
