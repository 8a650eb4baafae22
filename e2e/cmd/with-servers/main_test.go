package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/e2e/servers"
)

// build returns the path of the command.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "with-servers")
	if output, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return path
}

// withPostgres is the command that runs the script beside a PostgreSQL only.
func withPostgres(t *testing.T, path, script string) *exec.Cmd {
	t.Helper()
	command := exec.Command(path, "--without", "kafka,rabbitmq", "--", "sh", "-c", script)
	command.Env = append(os.Environ(), servers.PostgresVariable+"=", "RELAY_TEST_LOGS="+t.TempDir())
	return command
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	path := build(t)
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -KILL $$": 137} {
		err := withPostgres(t, path, script).Run()
		got := 0
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			got = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%s: exit code %d, want %d", script, got, want)
		}
	}
	for _, args := range [][]string{{}, {"--nonsense"}} {
		exit, ok := errors.AsType[*exec.ExitError](exec.Command(path, args...).Run())
		if !ok || exit.ExitCode() != 2 {
			t.Errorf("arguments %q: %v, want exit code 2", args, exit)
		}
	}
}

func TestServersGivenAreNotStarted(t *testing.T) {
	t.Parallel()
	command := withPostgres(t, build(t), `echo "url=$RELAY_TEST_POSTGRES_URL"`)
	command.Env = append(command.Env, servers.PostgresVariable+"=postgres://elsewhere/x")
	output, err := command.Output()
	if err != nil || string(output) != "url=postgres://elsewhere/x\n" {
		t.Errorf("%s, error %v", output, err)
	}
}

// running starts the script, whose function ready tells that it is prepared for
// signals, awaits that, and returns the PostgreSQL that it got.
func running(t *testing.T, script string) (command *exec.Cmd, output *bytes.Buffer, url string, ended <-chan error) {
	t.Helper()
	urlFile := filepath.Join(t.TempDir(), "url")
	command = withPostgres(t, build(t), `ready() { printf %s "$RELAY_TEST_POSTGRES_URL" > `+urlFile+`.tmp && mv `+urlFile+`.tmp `+urlFile+"; }; "+script)
	output = &bytes.Buffer{}
	command.Stdout = output
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- command.Wait() }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if data, err := os.ReadFile(urlFile); err == nil {
			return command, output, string(data), done
		}
		if time.Now().After(deadline) {
			t.Fatal("the command did not start")
		}
	}
}

// awaitGone returns when nothing answers at the address any more.
func awaitGone(t *testing.T, url string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			return
		}
		conn.Close(context.WithoutCancel(t.Context()))
		if time.Now().After(deadline) {
			t.Fatalf("%s still answers", url)
		}
	}
}

func TestSignalsReachTheCommand(t *testing.T) {
	t.Parallel()
	command, output, url, ended := running(t, `trap 'echo asked; exit 5' TERM; ready; while :; do sleep 0.05; done`)
	if err := command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || exit.ExitCode() != 5 || !strings.Contains(output.String(), "asked") {
			t.Errorf("%v, output %q; want exit code 5 and what the trap prints", err, output)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the signal did not end the command")
	}
	awaitGone(t, url)
}

func TestNothingOutlivesAKill(t *testing.T) {
	t.Parallel()
	command, output, url, ended := running(t, `echo pid=$$; ready; exec sleep 600`)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close(t.Context())
	if err := command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("a killed process ended with exit code 0")
	}
	awaitGone(t, url)
	match := regexp.MustCompile(`pid=(\d+)`).FindStringSubmatch(output.String())
	if match == nil {
		t.Fatalf("output %q", output)
	}
	pid, err := strconv.Atoi(match[1])
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); alive(pid); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the command, process %d, outlived its parent", pid)
		}
	}
}

// alive says whether the process runs; one that merely waits to be reaped does not.
func alive(pid int) bool {
	line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return err == nil && len(line) > 0
}

// With /dev/null for input there is nobody else who would signal what the command
// started.
func TestNullDeviceIsNoTerminal(t *testing.T) {
	t.Parallel()
	input, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = input.Close() }()
	if isTerminal(input) {
		t.Error("/dev/null counts as a terminal")
	}
}
