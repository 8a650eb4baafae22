// Package child runs processes that do not outlive this one.
package child

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Process is a child with a log file. Its methods may be called concurrently.
type Process struct {
	// Command says how it ended, in ProcessState, once it did.
	Command *exec.Cmd
	log     string
	// done is closed when it has ended; err is valid from then on.
	done chan struct{}
	err  error
}

// Start runs the command with its output appended to the file log.
func Start(command *exec.Cmd, log string) (*Process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	// Setpgid: a Ctrl-C in the terminal is for this process, which stops its
	// children in order. Pdeathsig: the kernel kills them if it cannot.
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	command.SysProcAttr.Setpgid = true
	command.SysProcAttr.Pdeathsig = syscall.SIGKILL
	command.Stdout, command.Stderr = file, file
	p := &Process{Command: command, log: log, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Pdeathsig comes when the thread that started the child ends, so this
		// one has to stay for as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		_ = file.Close()
		started <- err
		if err == nil {
			p.err = command.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", command.Path, err)
	}
	return p, nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal; a process that has ended takes it without complaint.
func (p *Process) Signal(signal os.Signal) { _ = p.Command.Process.Signal(signal) }

// Kill ends the process by SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Wait waits for the end, at most limit, and reports whether it came.
func (p *Process) Wait(limit time.Duration) bool {
	select {
	case <-p.done:
		return true
	case <-time.After(limit):
		return false
	}
}

// Err waits for the end and says how it was, nil for exit code 0.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// Tail is the last n lines of the log.
func (p *Process) Tail(n int) string {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(content), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}
