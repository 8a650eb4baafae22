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
	"strconv"
	"time"

	"gopkg.in/yaml.v3"
)

// readyLimit is how long a relay may take to start.
const readyLimit = 20 * time.Second

// relays are several relay processes that share one outbox.
type relays struct {
	crew
	binary string
	// configs and addresses, where it serves HTTP, are each relay's.
	configs, addresses []string
	// explained is how many duplicates the kills account for.
	explained int
}

// newRelays writes a configuration file for each into dir.
func newRelays(n int, binary, dir, databaseURL string, sink map[string]any, fail context.CancelCauseFunc) (*relays, error) {
	rs := &relays{crew: crew{fail: fail}, binary: binary}
	for i := range n {
		address, err := freeAddress()
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("relay-%d", i+1)
		config, err := writeConfig(dir, name, databaseURL, sink, address)
		if err != nil {
			return nil, err
		}
		rs.configs, rs.addresses = append(rs.configs, config), append(rs.addresses, address)
		rs.all = append(rs.all, &member{
			name: name, log: filepath.Join(dir, name+".log"),
			command: func() *exec.Cmd { return exec.Command(binary, "run", "--config", config) },
		})
	}
	return rs, nil
}

// writeConfig writes a relay's configuration into dir and returns its path.
func writeConfig(dir, name, databaseURL string, sink map[string]any, address string) (path string, err error) {
	content, err := yaml.Marshal(map[string]any{
		"database": map[string]any{"url": databaseURL},
		"sinks":    map[string]any{"main": sink},
		"http":     map[string]any{"listen": address},
	})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, name+".yaml")
	return path, os.WriteFile(path, content, 0o600)
}

// migrate makes the outbox.
func (rs *relays) migrate(ctx context.Context) error {
	return runCommand(exec.CommandContext(ctx, rs.binary, "migrate", "--only", "outbox", "--config", rs.configs[0]))
}

// strike kills the relay and adds how many messages it can have had in flight,
// sent and not marked: those pending before it and those that committed until
// after it.
func (rs *relays) strike(ctx context.Context, victim *member, book ledger) error {
	before, pending, err := book.moment(ctx)
	if err != nil {
		return err
	}
	if child := victim.end(true); child != nil {
		child.Kill()
	}
	after, _, err := book.moment(ctx)
	rs.explained += pending + after - before
	return err
}

// ready waits until all are, so that a signal finds them with their handlers
// in place.
func (rs *relays) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	for i, m := range rs.all {
		err := poll(ctx, func() (bool, error) { return answers(ctx, "http://"+rs.addresses[i]+"/readyz"), nil })
		if err != nil {
			return fmt.Errorf("%s is not ready: %w\n%s", m.name, err, m.current().tail())
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
