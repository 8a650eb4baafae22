package scenario

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/outboxrelay/relay/e2e/child"
	"github.com/outboxrelay/relay/e2e/servers"
)

const (
	// readyLimit is how long a relay may take to become ready.
	readyLimit = 30 * time.Second
	// stopLimit is how long a relay may take to stop: shutdown_timeout and more.
	stopLimit = 45 * time.Second
	// logTail is how many lines of its log a failed test prints.
	logTail = 40
)

// Relay is one relay over all its lives: each Start is a process of its own,
// with the same configuration and the same log.
type Relay struct {
	// Name tells it from the others of its test.
	Name string
	// Address is where it serves HTTP.
	Address string
	// Config is its configuration, ConfigPath the file, LogPath its log.
	Config              Config
	ConfigPath, LogPath string
	// Environment are variables of its processes beside those of the test, as
	// NAME=value.
	Environment []string
	// Binary is the program, when it is another than that of the tests.
	Binary string

	t       testing.TB
	mu      sync.Mutex
	process *child.Process
	// leaving: its end is wanted.
	leaving bool
}

// NewRelay writes the configuration, to which it adds http.listen unless it is
// there, and passwords that must never be seen again, into a folder of the test.
// The relay does not run yet. When the test ends it is killed, its log is
// searched for the passwords, and if the test failed it is printed and kept.
func NewRelay(t testing.TB, name string, config Config) *Relay {
	t.Helper()
	address := get(config, "http.listen", "unset")
	if address == "unset" {
		taken, release, err := servers.TakeAddress()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(release)
		address = taken
		config = config.With(Settings{"http.listen": address})
	}
	config = config.withCanary()
	dir := t.TempDir()
	r := &Relay{
		Name: name, Address: address, Config: config, t: t,
		ConfigPath: filepath.Join(dir, name+".yaml"), LogPath: filepath.Join(dir, name+".log"),
	}
	content, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.ConfigPath, content, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.cleanUp)
	return r
}

func (r *Relay) cleanUp() {
	r.mu.Lock()
	r.leaving = true
	p := r.process
	r.mu.Unlock()
	if p != nil {
		p.Kill()
	}
	checkLog(r.t, r.LogPath)
	if !r.t.Failed() || p == nil {
		return
	}
	r.t.Logf("%s's log ends with:\n%s", r.Name, p.Tail(logTail))
	dir := LogsDir(r.t)
	for _, path := range []string{r.LogPath, r.ConfigPath} {
		if err := keep(path, dir); err != nil {
			r.t.Log(err)
		}
	}
	r.t.Logf("%s's log and configuration are kept in %s", r.Name, dir)
}

// LogsDir is where the logs of a failed test are kept.
func LogsDir(t testing.TB) string {
	return filepath.Join(servers.LogsDir(), strings.NewReplacer("/", "_", " ", "_").Replace(t.Name()))
}

func keep(path, dir string) error {
	content, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, filepath.Base(path)), content, 0o644)
}

// Launch starts the process without waiting for anything.
func (r *Relay) Launch() {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.process != nil && r.process.Running() {
		r.t.Errorf("%s runs already", r.Name)
		return
	}
	command := exec.Command(cmp.Or(r.Binary, os.Getenv(BinaryVariable)), "run", "--config", r.ConfigPath)
	command.Env = append(os.Environ(), r.Environment...)
	p, err := child.Start(command, r.LogPath)
	if err != nil {
		r.t.Errorf("%v", err)
		return
	}
	r.process, r.leaving = p, false
	go func() {
		<-p.Done()
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.leaving && r.process == p {
			r.t.Errorf("%s ended by itself: %v", r.Name, p.Command.ProcessState)
		}
	}()
}

// Start launches the relay and waits until it is ready.
func (r *Relay) Start() {
	r.t.Helper()
	r.Launch()
	r.AwaitReady()
}

// AwaitReady waits until /readyz answers 200.
func (r *Relay) AwaitReady() {
	r.t.Helper()
	Await(r.t, readyLimit, r.Name+" to become ready", func() (bool, string) {
		if p := r.current(); p == nil || !p.Running() {
			r.t.Fatalf("%s ended instead of becoming ready", r.Name)
		}
		return r.Ready(), "it is not"
	})
}

// Ready reports whether /readyz answers 200.
func (r *Relay) Ready() bool { return r.Get("/readyz") == http.StatusOK }

// Get returns the HTTP status of a path, 0 when there is no answer.
func (r *Relay) Get(path string) int {
	client := http.Client{Timeout: 2 * time.Second}
	response, err := client.Get("http://" + r.Address + path)
	if err != nil {
		return 0
	}
	_ = response.Body.Close()
	return response.StatusCode
}

// Page returns what a path answers, empty when there is no answer.
func (r *Relay) Page(path string) string {
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get("http://" + r.Address + path)
	if err != nil {
		return ""
	}
	defer func() { _ = response.Body.Close() }()
	body, _ := io.ReadAll(response.Body) // half a page is as good as none
	checkCanary(r.t, path, string(body))
	return string(body)
}

func (r *Relay) current() *child.Process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.process
}

// end returns the process, whose end is wanted from now on.
func (r *Relay) end() *child.Process {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaving = true
	return r.process
}

// PID is the process's id.
func (r *Relay) PID() int { return r.current().Command.Process.Pid }

// Kill ends the relay as a crash would, by SIGKILL, and waits until it is gone.
func (r *Relay) Kill() { r.end().Kill() }

// Freeze stops the process by SIGSTOP: its connections stay open.
func (r *Relay) Freeze() { r.current().Signal(syscall.SIGSTOP) }

// Thaw lets a frozen relay go on.
func (r *Relay) Thaw() { r.current().Signal(syscall.SIGCONT) }

// Terminate asks the relay to stop by SIGTERM and does not wait.
func (r *Relay) Terminate() { r.end().Signal(syscall.SIGTERM) }

// ExitCode waits at most limit for the end and returns the exit code, -1 when a
// signal ended it, and whether it has ended.
func (r *Relay) ExitCode(limit time.Duration) (code int, ended bool) {
	p := r.current()
	if !p.Wait(limit) {
		return 0, false
	}
	return p.Command.ProcessState.ExitCode(), true
}

// Stop asks the relay to stop, waits, and fails the test unless it exits with
// code 0 in time.
func (r *Relay) Stop() {
	r.t.Helper()
	r.Terminate()
	code, ended := r.ExitCode(stopLimit)
	switch {
	case !ended:
		r.t.Errorf("%s did not stop within %v of SIGTERM", r.Name, stopLimit)
		r.Kill()
	case code != 0:
		r.t.Errorf("%s stopped with exit code %d (%v) after SIGTERM, want 0", r.Name, code, r.current().Command.ProcessState)
	}
}

// Log is what the relay wrote in all its lives.
func (r *Relay) Log() string {
	content, err := os.ReadFile(r.LogPath)
	if err != nil {
		return ""
	}
	return string(content)
}

// Result is how a command ended.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// String shows all of it.
func (r Result) String() string {
	return fmt.Sprintf("exit code %d\nstdout:\n%s\nstderr:\n%s", r.Code, r.Stdout, r.Stderr)
}

// commandLimit bounds a command that is expected to end.
const commandLimit = 2 * time.Minute

// Command runs the relay's binary with the configuration file of r.
func (r *Relay) Command(arguments ...string) Result {
	r.t.Helper()
	return Command(r.t, nil, append(arguments, "--config", r.ConfigPath)...)
}

// Command runs the relay's binary to its end with the arguments and with
// additional environment variables.
func Command(t testing.TB, environment []string, arguments ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	command := exec.CommandContext(ctx, os.Getenv(BinaryVariable), arguments...)
	command.Env = append(os.Environ(), environment...)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || ctx.Err() != nil) {
		t.Fatalf("relay %s: %v\n%s%s", strings.Join(arguments, " "), err, stdout.String(), stderr.String())
	}
	checkCanary(t, "relay "+strings.Join(arguments, " "), stdout.String()+stderr.String())
	return Result{stdout.String(), stderr.String(), command.ProcessState.ExitCode()}
}
