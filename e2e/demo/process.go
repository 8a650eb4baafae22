package demo

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// child is a process of the demo. It does not outlive the demo, whatever
// becomes of that.
type child struct {
	name    string
	command *exec.Cmd
	log     string
	// done is closed when the process has ended; err is valid from then on.
	done chan struct{}
	err  error
}

// startChild runs the command with its output appended to the file log.
func startChild(name, log string, command *exec.Cmd) (*child, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	// Setpgid: a Ctrl-C in the terminal is for the demo, which stops its
	// children in order. Pdeathsig: the kernel stops them if it cannot.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	command.Stdout, command.Stderr = file, file
	c := &child{name: name, command: command, log: log, done: make(chan struct{})}
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
			c.err = command.Wait()
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return c, nil
}

// running reports whether the process has not ended.
func (c *child) running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// kill ends the process by SIGKILL and waits until it is gone.
func (c *child) kill() {
	_ = c.command.Process.Kill() // fails when it is gone already
	<-c.done
}

// stop asks the process to end by SIGTERM, waits, and reports how it ended;
// one that does not end within limit is killed.
func (c *child) stop(limit time.Duration) error {
	_ = c.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
		return c.failure()
	case <-time.After(limit):
		c.kill()
		return fmt.Errorf("%s did not end within %v of SIGTERM\n%s", c.name, limit, c.tail())
	}
}

// failure says how the process ended, nil for exit code 0.
func (c *child) failure() error {
	if c.err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w\n%s", c.name, c.err, c.tail())
}

// tail is the end of the log.
func (c *child) tail() string {
	content, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(content), []byte("\n"))
	if len(lines) > 15 {
		lines = lines[len(lines)-15:]
	}
	return c.log + ":\n" + string(bytes.Join(lines, []byte("\n")))
}

// runCommand runs a command to its end; the error has its output.
func runCommand(command *exec.Cmd) error {
	output, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", command, err, bytes.TrimSpace(output))
	}
	return nil
}
