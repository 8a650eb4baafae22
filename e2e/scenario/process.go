package scenario

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/child"
)

// ProgramsVariable names the folder with the tests' own programs, of e2e/cmd;
// unset, Main builds them.
const ProgramsVariable = "RELAY_TEST_PROGRAMS"

// restartPause is how long a killed process stays away.
const restartPause = 100 * time.Millisecond

// Process is a program over all its lives. A killed one is
// started again until Stop.
type Process struct {
	// Name tells it from the others of its test.
	Name string
	// LogPath is the log of all its lives.
	LogPath string

	t       testing.TB
	command func(life int) *exec.Cmd

	mu      sync.Mutex
	process *child.Process
	// over is closed when nobody starts the process again.
	over chan struct{}
	// leaving: the end of the process is wanted.
	leaving bool
	lives   int
	kills   int
}

// program returns a process that does not run yet. Each life has a seed of its
// own.
func (s *Stage) program(binary, name string, arguments ...string) *Process {
	s.t.Helper()
	s.processes++
	name = fmt.Sprintf("%s-%d", name, s.processes)
	seed := s.Seed + uint64(s.processes)<<32
	return NewProcess(s.t, name, func(life int) *exec.Cmd {
		return exec.Command(filepath.Join(os.Getenv(ProgramsVariable), binary),
			append(arguments, "--process", name, "--seed", strconv.FormatUint(seed+uint64(life), 10))...)
	})
}

// NewProcess returns a process that does not run yet; command makes each life's,
// counted from 0.
func NewProcess(t testing.TB, name string, command func(life int) *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Name: name, LogPath: filepath.Join(t.TempDir(), name+".log"), t: t, command: command}
	t.Cleanup(p.cleanUp)
	return p
}

// Start launches the process, and again whenever it was killed.
func (p *Process) Start() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over != nil {
		p.t.Errorf("%s runs already", p.Name)
		return
	}
	p.leaving = false
	if p.launch() {
		p.over = make(chan struct{})
		go p.supervise(p.process, p.over)
	}
}

// launch starts a life; p.mu is held.
func (p *Process) launch() bool {
	started, err := child.Start(p.command(p.lives), p.LogPath)
	if err != nil {
		p.t.Errorf("%v", err)
		return false
	}
	p.process = started
	p.lives++
	return true
}

// supervise starts the process again whenever it was killed.
func (p *Process) supervise(life *child.Process, over chan struct{}) {
	defer close(over)
	for {
		<-life.Done()
		status, ok := life.Command.ProcessState.Sys().(syscall.WaitStatus)
		killed := ok && status.Signaled() && status.Signal() == syscall.SIGKILL
		if killed {
			time.Sleep(restartPause)
		}
		if life = p.next(life, killed); life == nil {
			return
		}
	}
}

// next returns the life after the one that ended, nil when there is none.
func (p *Process) next(ended *child.Process, killed bool) *child.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	if killed {
		p.kills++
	}
	switch {
	case p.leaving:
		return nil
	case !killed:
		p.t.Errorf("%s ended by itself: %v", p.Name, ended.Command.ProcessState)
		return nil
	case !p.launch():
		return nil
	}
	return p.process
}

// Kill ends the process as a crash would, by SIGKILL. It comes again.
func (p *Process) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.process != nil {
		p.process.Signal(syscall.SIGKILL)
	}
}

// Kills is how often it was killed, or killed itself.
func (p *Process) Kills() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kills
}

// Stop asks the process to stop, waits, and fails the test unless it exits
// with code 0 in time, or was killed just then. Start starts it again.
func (p *Process) Stop() {
	p.t.Helper()
	p.mu.Lock()
	life, over := p.process, p.over
	p.leaving, p.over = true, nil
	p.mu.Unlock()
	if over == nil {
		return
	}
	life.Signal(syscall.SIGTERM)
	if !life.Wait(stopLimit) {
		p.t.Errorf("%s did not stop within %v of SIGTERM", p.Name, stopLimit)
		life.Kill()
	}
	<-over
	if code := life.Command.ProcessState.ExitCode(); code > 0 {
		p.t.Errorf("%s stopped with exit code %d after SIGTERM, want 0\n%s", p.Name, code, life.Tail(logTail))
	}
}

// cleanUp ends it, and keeps the log of a failed test.
func (p *Process) cleanUp() {
	p.mu.Lock()
	life, over := p.process, p.over
	p.leaving = true
	p.mu.Unlock()
	if life == nil {
		return
	}
	life.Kill()
	if over != nil {
		<-over
	}
	checkLog(p.t, p.LogPath)
	if !p.t.Failed() {
		return
	}
	p.t.Logf("%s's log ends with:\n%s", p.Name, life.Tail(logTail))
	if err := keep(p.LogPath, LogsDir(p.t)); err != nil {
		p.t.Log(err)
	}
}
