package demo

import (
	"bytes"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"github.com/outboxrelay/relay/e2e/child"
)

// tailLines is how much of a log goes into an error.
const tailLines = 15

// program is a process of the demo, with a name for its errors.
type program struct {
	*child.Process
	name, log string
}

// startProgram runs the command with its output appended to the file log.
func startProgram(name, log string, command *exec.Cmd) (*program, error) {
	started, err := child.Start(command, log)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &program{started, name, log}, nil
}

// stop asks the process to end by SIGTERM, waits, and reports how it ended;
// one that does not end within limit is killed.
func (p *program) stop(limit time.Duration) error {
	p.Signal(syscall.SIGTERM)
	if !p.Wait(limit) {
		p.Kill()
		return fmt.Errorf("%s did not end within %v of SIGTERM\n%s", p.name, limit, p.tail())
	}
	return p.failure()
}

// failure says how the process ended, nil for exit code 0.
func (p *program) failure() error {
	if err := p.Err(); err != nil {
		return fmt.Errorf("%s: %w\n%s", p.name, err, p.tail())
	}
	return nil
}

// tail is the end of the log, under its name.
func (p *program) tail() string { return p.log + ":\n" + p.Tail(tailLines) }

// runCommand runs a command to its end; the error has its output.
func runCommand(command *exec.Cmd) error {
	output, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", command, err, bytes.TrimSpace(output))
	}
	return nil
}
