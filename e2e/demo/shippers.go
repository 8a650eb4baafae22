package demo

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// sessionTimeout is how long Kafka waits for a killed process: shorter than
// usual, so that much happens in the demo.
const sessionTimeout = 2 * time.Second

// shippers are several processes of the shipping service, which share the
// work.
type shippers struct {
	crew
	broker broker
	// relay is the relay's binary, which makes the inbox, and config what it
	// reads for that.
	relay, config string
}

// newShippers returns them.
func newShippers(n int, dir, databaseURL string, broker broker, fail context.CancelCauseFunc) (*shippers, error) {
	config, err := writeConfig(dir, "inbox", databaseURL, broker.Sink(), "")
	if err != nil {
		return nil, err
	}
	ss := &shippers{crew: crew{fail: fail}, broker: broker, relay: filepath.Join(dir, "relay"), config: config}
	for i := range n {
		environment, err := broker.ShippingEnvironment(i)
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("shipping-%d", i+1)
		ss.all = append(ss.all, &member{
			name: name, log: filepath.Join(dir, name+".log"),
			command: func() *exec.Cmd {
				command := exec.Command(filepath.Join(dir, "shipping"), "--session-timeout", sessionTimeout.String())
				command.Env = append(append(os.Environ(), "DATABASE_URL="+databaseURL), environment...)
				return command
			},
		})
	}
	return ss, nil
}

// migrate makes the inbox. The service makes its own tables.
func (ss *shippers) migrate(ctx context.Context) error {
	return runCommand(exec.CommandContext(ctx, ss.relay, "migrate", "--only", "inbox", "--config", ss.config))
}

// strike kills the process between a commit and its acknowledgement.
func (ss *shippers) strike(ctx context.Context, victim *member, depot waybills) error {
	child := victim.end(true)
	if child == nil {
		return nil
	}
	return ss.broker.Strike(ctx, slices.Index(ss.all, victim), child, depot)
}
