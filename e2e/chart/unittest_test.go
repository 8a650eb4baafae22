package chart_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/servers"
)

// runTool runs a program that has to succeed, and returns what it says.
func runTool(t *testing.T, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, program, args...)
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, output)
	}
	return string(output)
}

// helm-unittest's suites are in the folders tests of the charts.
func TestChartsPassTheirSuites(t *testing.T) {
	t.Parallel()
	program := built(t, servers.HelmUnittest)
	folder := filepath.Join(copyCharts(t), filepath.Base(chart))
	for _, folder := range []string{folder, copyExample(t)} {
		output := runTool(t, program, folder)
		if strings.Contains(output, "Tests:       0 passed") {
			t.Errorf("%s: no test ran: %s", folder, output)
		}
		t.Log(output)
	}
}

// A template that no suite names is tested by none of them.
func TestSuitesNameEveryTemplate(t *testing.T) {
	t.Parallel()
	suites, err := filepath.Glob(chart + "/tests/*_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, suite := range suites {
		text, err := os.ReadFile(suite)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	templates := 0
	err = filepath.WalkDir(chart+"/templates", func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.HasSuffix(path, ".tpl") {
			return err
		}
		name, err := filepath.Rel(chart, path)
		if err != nil {
			return err
		}
		templates++
		if !strings.Contains(all.String(), name) {
			t.Errorf("%s is in no suite", name)
		}
		return nil
	})
	if err != nil || templates < 10 {
		t.Errorf("%d templates, %v", templates, err)
	}
}
