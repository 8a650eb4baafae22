package demo

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"time"
)

const (
	// downTime is how long a killed process stays away.
	downTime = time.Second
	// stopLimit is a relay's shutdown_timeout, which is longer than a
	// consumer's, and some more.
	stopLimit = 40 * time.Second
)

// crew is several processes that share one task.
type crew struct {
	all []*member
	// fail is told when a process ends that nobody ended.
	fail context.CancelCauseFunc
}

// member is one of them, over all its lives.
type member struct {
	name, log string
	// command is what each life runs.
	command func() *exec.Cmd

	mu      sync.Mutex
	child   *program
	kills   int
	leaving bool // somebody ended it, or is about to
	killed  bool // by SIGKILL, and not started again yet
}

// start starts all that do not run.
func (c *crew) start() error {
	for _, m := range c.all {
		if err := c.startOne(m); err != nil {
			return err
		}
	}
	return nil
}

func (c *crew) startOne(m *member) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.child != nil && m.child.Running() {
		return nil
	}
	started, err := startProgram(m.name, m.log, m.command())
	if err != nil {
		return err
	}
	m.child, m.leaving, m.killed = started, false, false
	go func() {
		<-started.Done()
		m.mu.Lock()
		defer m.mu.Unlock()
		if !m.leaving {
			c.fail(fmt.Errorf("%s ended by itself (%v)\n%s", m.name, started.Command.ProcessState, started.tail()))
		}
	}()
	return nil
}

// end marks the process as ended on purpose and returns it, nil when there is
// none.
func (m *member) end(kill bool) *program {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.child == nil || !m.child.Running() {
		return nil
	}
	m.leaving = true
	if kill {
		m.killed = true
		m.kills++
	}
	return m.child
}

// current is the process of the present life, or of the last one.
func (m *member) current() *program {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.child
}

// harass has strike kill one process after the other, one each interval, and
// starts it again, until ctx ends. It returns with all of them running, unless
// it fails.
func (c *crew) harass(ctx context.Context, interval time.Duration, strike func(context.Context, *member) error) error {
	for i := 0; ; i++ {
		if !sleep(ctx, interval-downTime) {
			return nil
		}
		victim := c.all[i%len(c.all)]
		if err := strike(context.WithoutCancel(ctx), victim); err != nil {
			return fmt.Errorf("kill %s: %w", victim.name, err)
		}
		sleep(ctx, downTime)
		if err := c.startOne(victim); err != nil {
			return err
		}
	}
}

// stop ends all gracefully, side by side, and reports those that did not end
// well.
func (c *crew) stop() []error {
	var group sync.WaitGroup
	errs := make([]error, len(c.all))
	for i, m := range c.all {
		if child := m.end(false); child != nil {
			group.Go(func() { errs[i] = child.stop(stopLimit) })
		}
	}
	group.Wait()
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

// kill ends what still runs.
func (c *crew) kill() {
	for _, m := range c.all {
		if child := m.end(false); child != nil {
			child.Kill()
		}
	}
}

// memberStatus is a process as the view shows it.
type memberStatus struct {
	name            string
	running, killed bool
	kills           int
}

func (c *crew) status() []memberStatus {
	var status []memberStatus
	for _, m := range c.all {
		m.mu.Lock()
		status = append(status, memberStatus{m.name, m.child != nil && m.child.Running(), m.killed, m.kills})
		m.mu.Unlock()
	}
	return status
}

// kills adds them up.
func kills(members []memberStatus) (n int) {
	for _, m := range members {
		n += m.kills
	}
	return n
}

// sleep reports whether the time passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// poll calls condition until it holds, it fails, or ctx ends.
func poll(ctx context.Context, condition func() (bool, error)) error {
	for {
		if ok, err := condition(); ok || err != nil {
			return err
		}
		if !sleep(ctx, 20*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}
