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

// breakerState is whether messages are claimed for a sink.
type breakerState uint8

const (
	// breakerClosed: yes.
	breakerClosed breakerState = iota
	// breakerOpen: the broker is away; wait, then ping.
	breakerOpen
	// breakerHalfOpen: the broker answered a ping; one batch tries it.
	breakerHalfOpen
)

// sinkBreaker is the circuit breaker of one sink. It opens while the broker is away, so that
// nothing is claimed for it and no transaction is held open. All methods may be
// called concurrently.
type sinkBreaker struct {
	name      string
	publisher sinks.Publisher
	backoff   Backoff
	logger    *slog.Logger
	// changed is called when claims may have become possible, and observed whenever
	// it was found out whether the sink is up; they must not block.
	changed  func()
	observed func(up bool)

	mutex   sync.Mutex
	state   breakerState
	probing bool
	// failures in a row; what is closed again for less than its last pause is not
	// yet a new row.
	failures int
	reason   string
	// refused: a publish failed since the breaker was closed, so that a ping is not
	// enough to close it.
	refused bool
	// silent: the last ping failed.
	silent             bool
	lastSeen, closedAt time.Time
	// openings counts how often the breaker was opened.
	openings int
	// opening wakes the monitor.
	opening chan struct{}
}

func newSinkBreaker(name string, publisher sinks.Publisher, backoff Backoff, logger *slog.Logger, changed func(), observed func(up bool)) *sinkBreaker {
	return &sinkBreaker{
		name: name, publisher: publisher, backoff: backoff, changed: changed, observed: observed,
		logger:  logger.With("sink", name),
		opening: make(chan struct{}, 1),
	}
}

// passes reports whether messages may be claimed for the sink now.
func (b *sinkBreaker) passes() bool {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.state == breakerClosed || (b.state == breakerHalfOpen && !b.probing)
}

// begin tells that a batch with messages for the sink was claimed; while the
// breaker is half-open, it is the only one. What it returns belongs to succeeded.
func (b *sinkBreaker) begin() (openings int) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.probing = b.state == breakerHalfOpen
	return b.openings
}

// succeeded tells that the broker acknowledged messages, or refused some for
// what they are: it is there. A batch that began before the breaker was opened
// does not close it: it says how the broker was.
func (b *sinkBreaker) succeeded(now time.Time, openings int) {
	b.mutex.Lock()
	b.lastSeen = now
	if openings != b.openings {
		b.mutex.Unlock()
		return
	}
	away := b.state != breakerClosed
	if away {
		b.closedAt = now
	}
	b.state, b.probing, b.reason, b.refused = breakerClosed, false, "", false
	b.mutex.Unlock()
	b.observed(true)
	if away {
		b.logger.Info("sink is back")
		b.changed()
	}
}

// failed opens the breaker because publishing failed with err. Batches that were
// under way together fail together: the first one says it all.
func (b *sinkBreaker) failed(err error, now time.Time, openings int) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if openings == b.openings {
		b.refused = true
		b.open(err, now)
	}
}

// pinged opens the breaker because a ping failed with err.
func (b *sinkBreaker) pinged(err error, now time.Time) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.silent = true
	b.open(err, now)
}

// open opens the breaker; its caller holds the mutex.
func (b *sinkBreaker) open(err error, now time.Time) {
	reason := sinks.ReasonOf(err)
	// Some messages of a sink that is half there get through: no reason to ask it
	// as often as one that failed for the first time.
	if b.state == breakerClosed && now.Sub(b.closedAt) > b.backoff.longest(b.failures) {
		b.failures = 0
	}
	b.failures++
	b.openings++
	// Once per change of state and of reason, not once per attempt.
	news := reason != b.reason
	b.state, b.probing, b.reason = breakerOpen, false, reason
	b.observed(false)
	if news {
		b.logger.Warn("sink is away; nothing is lost, it is tried until it is back", "reason", reason, "error", err)
	}
	select {
	case b.opening <- struct{}{}:
	default:
	}
}

// monitor pings while the sink is silent, and closes the breaker when it answers
// again. It runs until ctx ends.
func (b *sinkBreaker) monitor(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.opening: // pause first
		case <-timer.C:
			b.step(ctx)
		}
		timer.Reset(b.untilStep())
	}
}

// untilStep is the pause before the next step.
func (b *sinkBreaker) untilStep() time.Duration {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	switch {
	case b.state != breakerOpen:
		return pingInterval
	case b.silent:
		// A ping costs a broker that is away nothing, and one that is back should
		// be known to be, however long it was away. A broker that answers pings
		// and refuses messages is spared.
		return min(b.backoff.pause(b.failures), pingInterval)
	}
	return b.backoff.pause(b.failures)
}

// step pings, unless messages flow or a probe is under way.
func (b *sinkBreaker) step(ctx context.Context) {
	b.mutex.Lock()
	needed := b.state == breakerOpen || (!b.probing && time.Since(b.lastSeen) >= pingInterval)
	b.mutex.Unlock()
	if !needed {
		return
	}
	pinging, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	err := b.publisher.Ping(pinging)
	switch {
	case err == nil:
		b.answered(time.Now())
	case ctx.Err() == nil: // otherwise the relay stops, and the sink is not at fault
		b.pinged(err, time.Now())
	}
}

// answered closes an open breaker after a ping: halfway where publishing had
// failed, since a broker may answer and yet accept nothing.
func (b *sinkBreaker) answered(now time.Time) {
	b.mutex.Lock()
	state, refused, openings := b.state, b.refused, b.openings
	if state == breakerOpen && refused {
		b.state = breakerHalfOpen
	}
	if b.silent {
		b.failures = 0 // they were about its being away, which it is no more
	}
	b.lastSeen, b.silent = now, false
	// Where nothing has tried a half-open sink since the last ping, another relay
	// has sent what was pending: as far as anybody can tell, it is up.
	if state == breakerClosed || (state == breakerHalfOpen && !b.probing) {
		b.observed(true)
	}
	b.mutex.Unlock()
	switch {
	case state != breakerOpen:
	case refused:
		b.changed()
	default:
		b.succeeded(now, openings)
	}
}
