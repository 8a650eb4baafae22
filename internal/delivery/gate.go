package delivery

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

const (
	// pingInterval is how often a sink is tried that nothing was published to.
	pingInterval = 2 * time.Second
	// pingTimeout bounds one try.
	pingTimeout = 4 * time.Second
)

// gateState is whether messages are claimed for a sink.
type gateState uint8

const (
	// open: yes.
	open gateState = iota
	// closed: the broker is away; wait, then ping.
	closed
	// halfOpen: the broker answered a ping; one batch tries it.
	halfOpen
)

// gate stands before one sink and closes while its broker is away, so that
// nothing is claimed for it and no transaction is held open. All methods may be
// called concurrently.
type gate struct {
	name      string
	publisher sinks.Publisher
	backoff   Backoff
	logger    *slog.Logger
	// changed is called when claims may have become possible; it must not block.
	changed func()

	mutex    sync.Mutex
	state    gateState
	probing  bool
	failures int
	reason   string
	// byPing: it was a ping that closed the gate.
	byPing   bool
	lastSeen time.Time
	// closing wakes the monitor.
	closing chan struct{}
}

func newGate(name string, publisher sinks.Publisher, backoff Backoff, logger *slog.Logger, changed func()) *gate {
	return &gate{
		name: name, publisher: publisher, backoff: backoff, changed: changed,
		logger:  logger.With("sink", name),
		closing: make(chan struct{}, 1),
	}
}

// passes reports whether messages may be claimed for the sink now.
func (g *gate) passes() bool {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	return g.state == open || (g.state == halfOpen && !g.probing)
}

// begin tells that a batch with messages for the sink was claimed; while the
// gate is half open, it is the only one.
func (g *gate) begin() {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.probing = g.state == halfOpen
}

// succeeded tells that the broker acknowledged messages, or refused some for
// what they are: it is there.
func (g *gate) succeeded(now time.Time) {
	g.mutex.Lock()
	away := g.state != open
	g.state, g.probing, g.failures, g.reason, g.lastSeen = open, false, 0, "", now
	g.mutex.Unlock()
	if away {
		g.logger.Info("sink is back")
		g.changed()
	}
}

// failed closes the gate because publishing failed with err.
func (g *gate) failed(err error) { g.close(err, false) }

// close closes the gate, because of a ping or of a publish.
func (g *gate) close(err error, byPing bool) {
	reason := sinks.ReasonOf(err)
	g.mutex.Lock()
	// Batches that were under way together fail together: that is one failure.
	if g.state != closed || byPing {
		g.failures++
	}
	// Once per change of state and of reason, not once per attempt.
	news := reason != g.reason
	g.byPing = byPing
	g.state, g.probing, g.reason = closed, false, reason
	g.mutex.Unlock()
	if news {
		g.logger.Warn("sink is away; nothing is lost, it is tried until it is back", "reason", reason, "error", err)
	}
	select {
	case g.closing <- struct{}{}:
	default:
	}
}

// monitor pings while the sink is silent, and opens the gate when it answers
// again. It runs until ctx ends.
func (g *gate) monitor(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.closing: // pause first
		case <-timer.C:
			g.step(ctx)
		}
		timer.Reset(g.untilStep())
	}
}

// untilStep is the pause before the next step.
func (g *gate) untilStep() time.Duration {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.state == closed {
		return g.backoff.pause(g.failures)
	}
	return pingInterval
}

// step pings, unless messages flow or a probe is under way.
func (g *gate) step(ctx context.Context) {
	g.mutex.Lock()
	needed := g.state == closed || (!g.probing && time.Since(g.lastSeen) >= pingInterval)
	g.mutex.Unlock()
	if !needed {
		return
	}
	pinging, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	err := g.publisher.Ping(pinging)
	switch {
	case err == nil:
		g.answered(time.Now())
	case ctx.Err() == nil: // otherwise the relay stops, and the sink is not at fault
		g.close(err, true)
	}
}

// answered opens a closed gate after a ping: halfway where publishing had
// failed, since a broker may answer and yet accept nothing.
func (g *gate) answered(now time.Time) {
	g.mutex.Lock()
	state, byPing := g.state, g.byPing
	if state == closed && !byPing {
		g.state = halfOpen
	}
	g.lastSeen = now
	g.mutex.Unlock()
	if state != closed {
		return
	}
	if byPing {
		g.succeeded(now)
	} else {
		g.changed()
	}
}
