package servers

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// logsVariable keeps the logs of every server that is closed, whatever happened.
const logsVariable = "RELAY_TEST_KEEP_LOGS"

// instance is what all servers have: a scratch folder, ports, a log and, while
// the server runs, a process.
type instance struct {
	name    string
	scratch *scratch
	ports   []*port
	// helpers are processes that the server needs and that end with it.
	helpers []*process

	// mu excludes starting and stopping from each other; it guards process
	// and closed.
	mu      sync.Mutex
	process *process
	closed  bool
	// mounted: the scratch folder has a disk in it, for the data.
	mounted bool
}

// newInstance takes what a server needs before it starts.
func newInstance(name, parent string, ports int) (*instance, error) {
	taken, err := takePorts(ports)
	if err != nil {
		return nil, err
	}
	folder, err := newScratch(name, parent)
	if err != nil {
		for _, p := range taken {
			p.release()
		}
		return nil, err
	}
	return &instance{name: name, scratch: folder, ports: taken}, nil
}

// dataPath is the folder of the server's data.
func (i *instance) dataPath() string {
	if i.mounted {
		return i.scratch.path(diskFolder, "data")
	}
	return i.scratch.path("data")
}

// Port is the TCP port on 127.0.0.1 that clients use, the same over restarts.
func (i *instance) Port() int { return i.ports[0].number }

// LogPath is the server's log, which lives until Close.
func (i *instance) LogPath() string { return i.scratch.path(i.name + ".log") }

// LogTail is the end of the server's log.
func (i *instance) LogTail() string { return tail(readEnd(i.LogPath(), 0)) }

// Running says whether the server's process exists, frozen or not.
func (i *instance) Running() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.process != nil && i.process.running()
}

// PID is the server's process id, 0 when it does not run.
func (i *instance) PID() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.process == nil || !i.process.running() {
		return 0
	}
	return i.process.command.Process.Pid
}

// Pause freezes the server by SIGSTOP: connections stay open and nothing answers.
func (i *instance) Pause() error { return i.signal(syscall.SIGSTOP) }

// Resume lets a paused server go on.
func (i *instance) Resume() error { return i.signal(syscall.SIGCONT) }

func (i *instance) signal(sig syscall.Signal) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.process == nil || !i.process.running() {
		return fmt.Errorf("%s is not running", i.name)
	}
	return i.process.signal(sig)
}

// Kill ends the server as a crash would, by SIGKILL, and waits until it is gone.
func (i *instance) Kill() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.process != nil {
		i.process.kill()
	}
}

func (i *instance) stop(sig syscall.Signal, limit time.Duration) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.process == nil {
		return nil
	}
	return i.process.stop(sig, limit)
}

// checkStartable refuses a second process; the caller holds mu.
func (i *instance) checkStartable() error {
	switch {
	case i.closed:
		return fmt.Errorf("%s was closed and cannot start again", i.name)
	case i.process != nil && i.process.running():
		return fmt.Errorf("%s runs already, as process %d", i.name, i.process.command.Process.Pid)
	}
	return nil
}

// KeepLogs copies the server's logs into a folder named after it in dir.
func (i *instance) KeepLogs(dir string) error {
	target := filepath.Join(dir, filepath.Base(i.scratch.dir))
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("keeping the logs of %s: %w", i.name, err)
	}
	var errs []error
	for _, pattern := range []string{"*.log", "*.properties", "*.conf", "*.ini", "log/*"} {
		paths, err := filepath.Glob(i.scratch.path(pattern))
		errs = append(errs, err)
		for _, path := range paths {
			errs = append(errs, copyFile(path, filepath.Join(target, filepath.Base(path))))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("keeping the logs of %s: %w", i.name, err)
	}
	return nil
}

// close ends everything and removes the folder; calls after the first do
// nothing. The server was asked to stop before, if that was wanted.
func (i *instance) close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil
	}
	i.closed = true
	if i.process != nil {
		i.process.kill()
	}
	for _, helper := range i.helpers {
		helper.kill()
	}
	var kept error
	if os.Getenv(logsVariable) != "" {
		kept = i.KeepLogs(LogsDir())
	}
	for _, p := range i.ports {
		p.release()
	}
	if i.mounted {
		kept = errors.Join(kept, unmountDisk(i.scratch.dir))
	}
	if err := i.scratch.remove(); err != nil {
		return errors.Join(kept, fmt.Errorf("removing the scratch folder of %s: %w", i.name, err))
	}
	return kept
}

func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(target, source); err != nil {
		_ = target.Close()
		return err
	}
	return target.Close()
}
