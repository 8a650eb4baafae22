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
	pingTimeout = 2500 * time.Millisecond
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
	// changed is called when claims may have become possible, and observed whenever
	// it was found out whether the sink is up; they must not block.
	changed  func()
	observed func(up bool)

	mutex   sync.Mutex
	state   gateState
	probing bool
	// failures in a row; what is open again for less than its last pause is not
	// yet a new row.
	failures int
	reason   string
	// refused: a publish failed since the gate was open, so that a ping is not
	// enough to open it.
	refused bool
	// silent: the last ping failed.
	silent             bool
	lastSeen, openedAt time.Time
	// closings counts how often the gate was closed.
	closings int
	// closing wakes the monitor.
	closing chan struct{}
}

func newGate(name string, publisher sinks.Publisher, backoff Backoff, logger *slog.Logger, changed func(), observed func(up bool)) *gate {
	return &gate{
		name: name, publisher: publisher, backoff: backoff, changed: changed, observed: observed,
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
// gate is half open, it is the only one. What it returns belongs to succeeded.
func (g *gate) begin() (closings int) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.probing = g.state == halfOpen
	return g.closings
}

// succeeded tells that the broker acknowledged messages, or refused some for
// what they are: it is there. A batch that began before the gate was closed
// does not open it: it says how the broker was.
func (g *gate) succeeded(now time.Time, closings int) {
	g.mutex.Lock()
	g.lastSeen = now
	if closings != g.closings {
		g.mutex.Unlock()
		return
	}
	away := g.state != open
	if away {
		g.openedAt = now
	}
	g.state, g.probing, g.reason, g.refused = open, false, "", false
	g.mutex.Unlock()
	g.observed(true)
	if away {
		g.logger.Info("sink is back")
		g.changed()
	}
}

// failed closes the gate because publishing failed with err. Batches that were
// under way together fail together: the first one says it all.
func (g *gate) failed(err error, now time.Time, closings int) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if closings == g.closings {
		g.refused = true
		g.close(err, now)
	}
}

// pinged closes the gate because a ping failed with err.
func (g *gate) pinged(err error, now time.Time) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.silent = true
	g.close(err, now)
}

// close closes the gate; its caller holds the mutex.
func (g *gate) close(err error, now time.Time) {
	reason := sinks.ReasonOf(err)
	// Some messages of a sink that is half there get through: no reason to ask it
	// as often as one that failed for the first time.
	if g.state == open && now.Sub(g.openedAt) > g.backoff.longest(g.failures) {
		g.failures = 0
	}
	g.failures++
	g.closings++
	// Once per change of state and of reason, not once per attempt.
	news := reason != g.reason
	g.state, g.probing, g.reason = closed, false, reason
	g.observed(false)
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
	switch {
	case g.state != closed:
		return pingInterval
	case g.silent:
		// A ping costs a broker that is away nothing, and one that is back should
		// be known to be, however long it was away. A broker that answers pings
		// and refuses messages is spared.
		return min(g.backoff.pause(g.failures), pingInterval)
	}
	return g.backoff.pause(g.failures)
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
		g.pinged(err, time.Now())
	}
}

// answered opens a closed gate after a ping: halfway where publishing had
// failed, since a broker may answer and yet accept nothing.
func (g *gate) answered(now time.Time) {
	g.mutex.Lock()
	state, refused, closings := g.state, g.refused, g.closings
	if state == closed && refused {
		g.state = halfOpen
	}
	if g.silent {
		g.failures = 0 // they were about its being away, which it is no more
	}
	g.lastSeen, g.silent = now, false
	// Where nothing has tried a half open sink since the last ping, another relay
	// has sent what was pending: as far as anybody can tell, it is up.
	if state == open || (state == halfOpen && !g.probing) {
		g.observed(true)
	}
	g.mutex.Unlock()
	switch {
	case state != closed:
	case refused:
		g.changed()
	default:
		g.succeeded(now, closings)
	}
}
