package servers

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestPrometheusAnswers(t *testing.T) {
	t.Parallel()
	p, err := StartPrometheus(t.Context(), "global: {scrape_interval: 1s}\n", t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := httpOK(t.Context(), p.URL()+"/api/v1/query?query=vector(1)"); err != nil {
		t.Error(err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
}

// Both programs are in the folder that is promised.
func TestPromtoolIsBesidePrometheus(t *testing.T) {
	t.Parallel()
	dir, err := Prometheus(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"prometheus", "promtool"} {
		output, err := runTool(t.Context(), exec.Command(filepath.Join(dir, program), "--version"))
		if err != nil || !strings.Contains(output, program+", version") {
			t.Errorf("%s --version printed %q, %v", program, output, err)
		}
	}
}
