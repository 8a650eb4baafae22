package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	// pollInterval is the pause between two looks at whether a server answers.
	pollInterval = 30 * time.Millisecond
	// tailLines is how much of a log goes into an error.
	tailLines = 25
)

// process is a running child with a log file.
type process struct {
	name    string
	command *exec.Cmd
	log     string
	// from is where this run's part of the log begins.
	from int64
	// done is closed when the process ended; err is how, valid after that.
	done chan struct{}
	err  error
}

// startProcess starts the command in a process group of its own, killed by the
// kernel when this process dies, with its output appended to the file log.
func startProcess(name string, command *exec.Cmd, log string) (*process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("%s: opening its log: %w", name, err)
	}
	defer file.Close()
	from, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("%s: its log: %w", name, err)
	}
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	command.SysProcAttr.Setpgid = true
	command.SysProcAttr.Pdeathsig = syscall.SIGKILL
	command.Stdout, command.Stderr = file, file
	p := &process{name: name, command: command, log: log, from: from, done: make(chan struct{})}
	if err := processSpawner().start(command); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		p.err = command.Wait()
		close(p.done)
	}()
	return p, nil
}

// asNobody makes the command run as nobody when this process is root, for
// servers that refuse to be root. The user must have an entry in the password
// file, which nobody has everywhere.
func asNobody(command *exec.Cmd) {
	command.Dir = "/"
	if os.Geteuid() == 0 {
		command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
}

// nobody is the user id, and the group id, of nobody.
const nobody = 65534

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// awaitReady returns when probe succeeds. It fails at once when the process
// ends, with the end of its log, and otherwise after limit.
func (p *process) awaitReady(ctx context.Context, limit time.Duration, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		attempt, stop := context.WithTimeout(ctx, 5*time.Second)
		err := probe(attempt)
		stop()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return &ExitError{Name: p.name, Err: p.err, Log: p.output()}
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer after %v: %w; its log ends with:\n%s", p.name, limit, err, tail(p.output()))
		case <-time.After(pollInterval):
		}
	}
}

// signal sends the signal to the process itself, not to its group. A process
// that ended already is no error.
func (p *process) signal(sig syscall.Signal) error {
	if !p.running() {
		return nil
	}
	if err := p.command.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sending %v to %s: %w", sig, p.name, err)
	}
	return nil
}

// stop sends the signal and waits for the end; after limit it kills, and says so.
func (p *process) stop(sig syscall.Signal, limit time.Duration) error {
	if err := p.signal(sig); err != nil {
		return err
	}
	// A frozen process would not act on the signal.
	_ = p.signal(syscall.SIGCONT)
	select {
	case <-p.done:
		return nil
	case <-time.After(limit):
		p.kill()
		return fmt.Errorf("%s did not end within %v of %v and was killed; its log ends with:\n%s", p.name, limit, sig, tail(p.output()))
	}
}

// kill ends the process and its group by SIGKILL and waits for the end.
func (p *process) kill() {
	// The group's id stays taken until the leader was waited for.
	if p.running() {
		_ = syscall.Kill(-p.command.Process.Pid, syscall.SIGKILL)
	}
	<-p.done
}

// output is the end of what this run wrote, at most 64 KiB.
func (p *process) output() string { return readEnd(p.log, p.from) }

// readEnd is the end of a file, from the offset on, at most 64 KiB.
func readEnd(path string, from int64) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	data, err := io.ReadAll(io.NewSectionReader(file, max(from, size-64<<10), 64<<10))
	if err != nil {
		return ""
	}
	return string(data)
}

// tail is the last lines of a log.
func tail(log string) string {
	lines := strings.Split(strings.TrimRight(log, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}

// ExitError says that a server ended although it should run.
type ExitError struct {
	// Name is the server's.
	Name string
	// Err is how the process ended.
	Err error
	// Log is what it wrote in this run, at most the last 64 KiB.
	Log string
}

// Error returns the end of the log too, as that is where the reason is.
func (e *ExitError) Error() string {
	how := "exit status 0"
	if e.Err != nil {
		how = e.Err.Error()
	}
	return fmt.Sprintf("%s ended while starting (%s); its log ends with:\n%s", e.Name, how, tail(e.Log))
}

// Unwrap returns how the process ended.
func (e *ExitError) Unwrap() error { return e.Err }

// runTool runs a command that ends by itself and returns what it printed; an
// error has that too. It dies with this process.
func runTool(ctx context.Context, command *exec.Cmd) (string, error) {
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	command.SysProcAttr.Setpgid = true
	command.SysProcAttr.Pdeathsig = syscall.SIGKILL
	// A grandchild that holds the output open must not hold us.
	command.WaitDelay = 5 * time.Second
	if err := processSpawner().start(command); err != nil {
		return "", fmt.Errorf("starting %s: %w", command.Path, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL) })
	err := command.Wait()
	if !stop() {
		return output.String(), fmt.Errorf("%s: %w", command.Path, context.Cause(ctx))
	}
	if err != nil {
		return output.String(), fmt.Errorf("%s: %w:\n%s", strings.Join(command.Args, " "), err, tail(output.String()))
	}
	return output.String(), nil
}
