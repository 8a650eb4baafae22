package scenario

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// process is a child with a log file. The kernel kills it with this process.
type process struct {
	command *exec.Cmd
	// done is closed when it has ended.
	done chan struct{}
}

// startProcess runs the command with its output appended to the file log.
func startProcess(command *exec.Cmd, log string) (*process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	command.Stdout, command.Stderr = file, file
	p := &process{command: command, done: make(chan struct{})}
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
			_ = command.Wait() // ProcessState says how it ended
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", command.Path, err)
	}
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// signal sends a signal; a process that has ended takes it without complaint.
func (p *process) signal(sig os.Signal) { _ = p.command.Process.Signal(sig) }

// wait waits for the end, at most limit.
func (p *process) wait(limit time.Duration) bool {
	select {
	case <-p.done:
		return true
	case <-time.After(limit):
		return false
	}
}

func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// tail is the last lines of a file.
func tail(path string, n int) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(content), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}
