package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What the tested binary says of itself.
const (
	builtVersion = "v9.8.7"
	builtCommit  = "0123abc"
)

// binary is the relay as it is built for users: the race detector would make
// each start take a second.
var binary string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "outbox-relay-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary = filepath.Join(dir, "relay")
	// As tools/test builds it for other tests, so that only linking is done again.
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "-ldflags", "-X main.version="+builtVersion+" -X main.commit="+builtCommit, ".")
	if output, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the relay: %v\n%s", err, output)
		return 1
	}
	return m.Run()
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\nstdout:\n%s\nstderr:\n%s", r.code, r.stdout, r.stderr)
}

// executeWith runs the relay in an empty folder with the environment variables.
func executeWith(t *testing.T, environment []string, arguments ...string) result {
	t.Helper()
	command := exec.CommandContext(t.Context(), binary, arguments...)
	command.Dir = t.TempDir()
	command.Env = append([]string{"HOME=" + command.Dir}, environment...)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), command.ProcessState.ExitCode()}
}

func execute(t *testing.T, arguments ...string) result {
	t.Helper()
	return executeWith(t, nil, arguments...)
}

// write makes a configuration file.
func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "relay.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// minimal is a complete configuration of a relay that reaches nobody.
const minimal = `
database: {url: "postgres://relay:hunter2@127.0.0.1:1/shop?sslmode=disable"}
sinks:
  main:
    kafka:
      brokers: ["127.0.0.1:1"]
http: {listen: "127.0.0.1:1"}
`

// commands are all there are, with the flags that they need to do something.
var commands = [][]string{
	{"run"}, {"migrate"}, {"check"}, {"status"}, {"prune"}, {"config", "print"}, {"healthcheck"},
	{"parked", "list"}, {"parked", "retry", "--all", "--yes"}, {"parked", "skip", "--all", "--yes"},
	{"dead", "list"}, {"dead", "show", "--all"}, {"dead", "retry", "--all", "--yes"}, {"dead", "discard", "--all", "--yes"},
	{"replay", "--all", "--yes"},
}

// expect checks the exit code and that the outputs hold the words.
func (r result) expect(t *testing.T, code int, stdout, stderr []string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d\n%s", r.code, code, r)
	}
	for _, word := range stdout {
		if !strings.Contains(r.stdout, word) {
			t.Errorf("stdout does not say %q\n%s", word, r)
		}
	}
	for _, word := range stderr {
		if !strings.Contains(r.stderr, word) {
			t.Errorf("stderr does not say %q\n%s", word, r)
		}
	}
	if strings.Contains(r.stdout+r.stderr, "hunter2") {
		t.Errorf("a secret is shown\n%s", r)
	}
	if stdout == nil && r.stdout != "" {
		t.Errorf("stdout is not empty\n%s", r)
	}
	if stderr == nil && r.stderr != "" {
		t.Errorf("stderr is not empty\n%s", r)
	}
	if strings.Contains(r.stderr, "goroutine ") {
		t.Errorf("it panicked\n%s", r)
	}
}

type words = []string
