package demo

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"gopkg.in/yaml.v3"
)

const (
	// downTime is how long a killed relay stays away.
	downTime = time.Second
	// stopLimit is a relay's shutdown_timeout and some more.
	stopLimit = 40 * time.Second
	// readyLimit is how long a relay may take to start.
	readyLimit = 20 * time.Second
)

// relays are several relay processes that share one outbox.
type relays struct {
	binary string
	all    []*relay
	// fail is told when a relay ends that nobody ended.
	fail context.CancelCauseFunc
}

// relay is one of them, over all its lives.
type relay struct {
	name, config, log string
	// address is where it serves HTTP.
	address string

	mu      sync.Mutex
	child   *program
	kills   int
	leaving bool // somebody ended it, or is about to
	killed  bool // by SIGKILL, and not started again yet
}

// newRelays writes a configuration file for each into dir.
func newRelays(n int, binary, dir, databaseURL string, sink map[string]any, fail context.CancelCauseFunc) (*relays, error) {
	rs := &relays{binary: binary, fail: fail}
	configuration := map[string]any{
		"database": map[string]any{"url": databaseURL},
		"sinks":    map[string]any{"main": sink},
	}
	for i := range n {
		address, err := freeAddress()
		if err != nil {
			return nil, err
		}
		configuration["http"] = map[string]any{"listen": address}
		content, err := yaml.Marshal(configuration)
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("relay-%d", i+1)
		r := &relay{name: name, config: filepath.Join(dir, name+".yaml"), log: filepath.Join(dir, name+".log"), address: address}
		if err := os.WriteFile(r.config, content, 0o600); err != nil {
			return nil, err
		}
		rs.all = append(rs.all, r)
	}
	return rs, nil
}

// migrate makes the outbox.
func (rs *relays) migrate(ctx context.Context) error {
	return runCommand(exec.CommandContext(ctx, rs.binary, "migrate", "--config", rs.all[0].config))
}

// start starts all that do not run.
func (rs *relays) start() error {
	for _, r := range rs.all {
		if err := rs.startOne(r); err != nil {
			return err
		}
	}
	return nil
}

func (rs *relays) startOne(r *relay) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.child != nil && r.child.Running() {
		return nil
	}
	started, err := startProgram(r.name, r.log, exec.Command(rs.binary, "run", "--config", r.config))
	if err != nil {
		return err
	}
	r.child, r.leaving, r.killed = started, false, false
	go func() {
		<-started.Done()
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.leaving {
			rs.fail(fmt.Errorf("%s ended by itself (%v)\n%s", r.name, started.Command.ProcessState, started.tail()))
		}
	}()
	return nil
}

// end marks the relay as ended on purpose and returns its process, nil when it
// has none.
func (r *relay) end(kill bool) *program {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.child == nil || !r.child.Running() {
		return nil
	}
	r.leaving = true
	if kill {
		r.killed = true
		r.kills++
	}
	return r.child
}

// harass kills one relay after the other, one each interval, and starts it
// again, until ctx ends. It returns with all of them running, unless it fails,
// and says how many duplicates the kills can explain.
func (rs *relays) harass(ctx context.Context, interval time.Duration, book ledger) (explained int, err error) {
	for i := 0; ; i++ {
		if !sleep(ctx, interval-downTime) {
			return explained, nil
		}
		victim := rs.all[i%len(rs.all)]
		inFlight, err := victim.strike(context.WithoutCancel(ctx), book)
		if err != nil {
			return explained, fmt.Errorf("kill %s: %w", victim.name, err)
		}
		explained += inFlight
		sleep(ctx, downTime)
		if err := rs.startOne(victim); err != nil {
			return explained, err
		}
	}
}

// strike kills the relay and returns how many messages it can have had in
// flight, sent and not marked: those pending before it and those that
// committed until after it.
func (r *relay) strike(ctx context.Context, book ledger) (inFlight int, err error) {
	before, pending, err := book.moment(ctx)
	if err != nil {
		return 0, err
	}
	if child := r.end(true); child != nil {
		child.Kill()
	}
	after, _, err := book.moment(ctx)
	return pending + after - before, err
}

// ready waits until all are, so that a signal finds them with their handlers
// in place.
func (rs *relays) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	for _, r := range rs.all {
		err := poll(ctx, func() (bool, error) { return answers(ctx, "http://"+r.address+"/readyz"), nil })
		if err != nil {
			return fmt.Errorf("%s is not ready: %w\n%s", r.name, err, r.child.tail())
		}
	}
	return nil
}

func answers(ctx context.Context, url string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// freeAddress is below the range that the kernel takes ports of outgoing
// connections from, so that it is still free when the relay comes back.
func freeAddress() (string, error) {
	const first, last = 10000, 32767
	for range 1000 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(first+rand.IntN(last-first+1)))
		if probe, err := net.Listen("tcp", address); err == nil {
			return address, probe.Close()
		}
	}
	return "", fmt.Errorf("found no free port between %d and %d on 127.0.0.1", first, last)
}

// stop ends all gracefully, side by side, and reports those that did not end
// well.
func (rs *relays) stop() []error {
	var group sync.WaitGroup
	errs := make([]error, len(rs.all))
	for i, r := range rs.all {
		if child := r.end(false); child != nil {
			group.Go(func() { errs[i] = child.stop(stopLimit) })
		}
	}
	group.Wait()
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

// kill ends what still runs.
func (rs *relays) kill() {
	for _, r := range rs.all {
		if child := r.end(false); child != nil {
			child.Kill()
		}
	}
}

// relayStatus is a relay as the view shows it.
type relayStatus struct {
	name            string
	running, killed bool
	kills           int
}

func (rs *relays) status() []relayStatus {
	var status []relayStatus
	for _, r := range rs.all {
		r.mu.Lock()
		status = append(status, relayStatus{r.name, r.child != nil && r.child.Running(), r.killed, r.kills})
		r.mu.Unlock()
	}
	return status
}

func (rs *relays) kills() int {
	total := 0
	for _, s := range rs.status() {
		total += s.kills
	}
	return total
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
