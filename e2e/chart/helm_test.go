package chart_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/outboxrelay/relay/e2e/servers"
)

const (
	// chart is the chart's folder.
	chart = "../../deploy/helm/outbox-relay"
	// release is the name that tests install it by; each has a namespace.
	release = "orders"
	// waitLimit bounds what helm waits for.
	waitLimit = 4 * time.Minute
)

// values are a chart's.
type values map[string]any

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\nstdout:\n%s\nstderr:\n%s", r.code, r.stdout, r.stderr)
}

// helm runs helm in the namespace.
func (n *namespace) helm(args ...string) result {
	n.t.Helper()
	return runHelm(n.t, []string{
		"KUBECONFIG=" + n.kubernetes.Kubeconfig(), "HELM_NAMESPACE=" + n.name,
		"HELM_CACHE_HOME=" + n.home + "/cache", "HELM_CONFIG_HOME=" + n.home + "/config", "HELM_DATA_HOME=" + n.home + "/data",
	}, args...)
}

func runHelm(t testing.TB, environment []string, args ...string) result {
	t.Helper()
	program := built(t, servers.Helm)
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit+time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, program, args...)
	command.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, environment...)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && (!exited || ctx.Err() != nil) {
		t.Fatalf("helm %s: %v\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return result{stdout.String(), stderr.String(), command.ProcessState.ExitCode()}
}

// mustHelm fails the test unless helm succeeds without a warning of the API's.
func (n *namespace) mustHelm(args ...string) string {
	n.t.Helper()
	r := n.helm(args...)
	if r.code != 0 {
		n.t.Fatalf("helm %s: %s\n%s", strings.Join(args, " "), r, n.describe())
	}
	// helm prints the API's warnings as W0102 15:04:05.000000 1 warnings.go:70] …
	if strings.Contains(r.stderr, "warnings.go") || strings.Contains(strings.ToLower(r.stderr), "warning") {
		n.t.Errorf("helm %s warns:\n%s", args[0], r.stderr)
	}
	return r.stdout
}

// install installs the chart, and fails the test unless its pods become ready.
func (n *namespace) install(files ...string) {
	n.t.Helper()
	n.installChart(chart, files...)
}

func (n *namespace) installChart(chart string, files ...string) {
	n.t.Helper()
	n.mustHelm(append([]string{"install", release, chart, "--wait", "--wait-for-jobs", "--timeout", waitLimit.String()}, flags(files)...)...)
}

// upgrade upgrades the release alike.
func (n *namespace) upgrade(files ...string) {
	n.t.Helper()
	n.mustHelm(append([]string{"upgrade", release, chart, "--wait", "--wait-for-jobs", "--timeout", waitLimit.String()}, flags(files)...)...)
}

func flags(files []string) []string {
	var flags []string
	for _, file := range files {
		flags = append(flags, "--values", file)
	}
	return flags
}

// describe says what the namespace's pods and events tell, for a failed test.
func (n *namespace) describe() string {
	var text strings.Builder
	for _, pod := range list[pod](n, "v1", "pods", "") {
		fmt.Fprintf(&text, "pod %s: %s\n", pod.Metadata.Name, pod.Status.Phase)
	}
	for _, event := range list[struct{ Reason, Message string }](n, "v1", "events", "") {
		fmt.Fprintf(&text, "event %s: %s\n", event.Reason, event.Message)
	}
	return text.String()
}

// file writes values for helm's option --values.
func (v values) file(t testing.TB) string {
	t.Helper()
	content, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// hooks are the manifests of the release's hooks and how they went.
func (n *namespace) hooks() map[string]string {
	n.t.Helper()
	var status struct {
		Hooks []struct {
			Kind    string
			LastRun struct{ Phase string } `json:"last_run"`
		}
	}
	output := n.mustHelm("status", release, "--output", "json")
	if err := json.Unmarshal([]byte(output), &status); err != nil {
		n.t.Fatalf("%v in %s", err, output)
	}
	phases := map[string]string{}
	for _, hook := range status.Hooks {
		phases[hook.Kind] = hook.LastRun.Phase
	}
	return phases
}
