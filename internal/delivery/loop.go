// Package delivery moves messages from a source through the routes to the
// sinks and settles them. It is the only place that backs off: a source or a
// sink that fails says so at once, and the loop decides who waits, for how long.
package delivery

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

const (
	// settleTimeout bounds marking and committing; it begins when the broker
	// has answered, also during a stop.
	settleTimeout = 10 * time.Second
	// maxDatabasePause bounds the pause before the database is tried again.
	maxDatabasePause = 5 * time.Second
	// databasePing is how often the database is tried while no sink takes
	// messages.
	databasePing = time.Second
)

// errNotTried says that the database was not asked.
var errNotTried = errors.New("not tried")

// Source hands out batches. Claim returns nil where nothing is pending; it is
// called by one goroutine at a time.
type Source interface {
	Claim(ctx context.Context, exclude source.Exclusion) (source.Batch, error)
	// Ping reaches the database without claiming anything.
	Ping(ctx context.Context) error
}

// Options of a Loop.
type Options struct {
	Source Source
	Routes *route.Table
	Sinks  map[string]sinks.Publisher
	// Workers is the number of batches under way at most.
	Workers        int
	PollInterval   time.Duration
	PublishTimeout time.Duration
	// TotalOrder: a message that fails holds back all others.
	TotalOrder bool
	Backoff    Backoff
	// ShutdownTimeout bounds what is under way when Run's context ends.
	ShutdownTimeout time.Duration
	Logger          *slog.Logger
}

// Loop claims, routes, publishes and settles.
type Loop struct {
	options Options
	gates   map[string]*gate
	// wake ends the wait for the next claim.
	wake chan struct{}
	// slots holds one token per batch that may be under way.
	slots chan struct{}
	ready atomic.Bool
	// pinged is when the database was last asked for its own sake.
	pinged time.Time

	mutex     sync.Mutex
	holds     *holds
	exclusion source.Exclusion
	// built is what exclusion was built from.
	built struct {
		holds   uint64
		blocked string
	}
}

// New returns a Loop that does nothing before Run.
func New(options Options) *Loop {
	l := &Loop{
		options: options,
		gates:   make(map[string]*gate, len(options.Sinks)),
		wake:    make(chan struct{}, 1),
		slots:   make(chan struct{}, options.Workers),
		holds:   newHolds(),
	}
	for name, publisher := range options.Sinks {
		l.gates[name] = newGate(name, publisher, options.Backoff, options.Logger, l.Wake)
	}
	return l
}

// Wake makes the loop look for messages now rather than at its next poll. It
// does not block and may be called from anywhere.
func (l *Loop) Wake() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Ready reports whether the database was reached and the loop runs.
func (l *Loop) Ready() bool { return l.ready.Load() }

// Run relays until ctx ends. Then it claims no more, lets what is under way
// finish within ShutdownTimeout, and returns; past it, what the broker
// acknowledged is settled and the rest given back.
func (l *Loop) Run(ctx context.Context) {
	publishing, stopPublishing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPublishing()
	var background sync.WaitGroup
	for _, g := range l.gates {
		background.Go(func() { g.monitor(ctx) })
	}

	l.claimAll(ctx, publishing)

	l.ready.Store(false)
	bound := time.AfterFunc(l.options.ShutdownTimeout, stopPublishing)
	defer bound.Stop()
	for range cap(l.slots) {
		l.slots <- struct{}{} // every batch has ended when all slots are free
	}
	background.Wait()
}

// claimAll claims batch after batch until ctx ends.
func (l *Loop) claimAll(ctx, publishing context.Context) {
	pace := pace{pollInterval: l.options.PollInterval}
	database := outage{backoff: l.options.Backoff, logger: l.options.Logger}
	for {
		select {
		case <-ctx.Done():
			return
		case l.slots <- struct{}{}:
		}
		began := time.Now()
		batch, wait, err := l.claim(ctx)
		switch {
		case errors.Is(err, errNotTried):
			err = nil
		case ctx.Err() != nil && err != nil: // stopping is not the database's failure
			err = nil
		case err != nil && source.IsTransient(err):
			l.options.Logger.Debug("claim again", "reason", err)
			wait = busyPause
		case err != nil:
			wait = database.failed(err)
		default:
			database.over()
			l.ready.Store(true)
		}
		if batch == nil {
			<-l.slots
			if err == nil {
				wait = min(wait, pace.after(began, false, false))
			}
		} else {
			wait = pace.after(began, true, batch.Full())
			d := l.route(batch)
			go func() {
				defer func() { <-l.slots }()
				l.deliver(publishing, d)
			}()
		}
		if !l.pause(ctx, began, wait, err == nil) {
			return
		}
	}
}

// claim returns the next batch, nil without an error when nothing may be
// claimed, and how long that stays so at most.
func (l *Loop) claim(ctx context.Context) (source.Batch, time.Duration, error) {
	now := time.Now()
	exclusion, wait, any := l.exclude(now)
	if !any {
		// Nobody to publish to; the database's state is of interest all the same.
		if now.Sub(l.pinged) < databasePing {
			return nil, wait, errNotTried
		}
		l.pinged = now
		return nil, wait, l.options.Source.Ping(ctx)
	}
	batch, err := l.options.Source.Claim(ctx, exclusion)
	return batch, wait, err
}

// pause waits before the next claim, and reports false when ctx ended. A wake
// ends the wait, but claims do not begin sooner one after the other than by
// notifyPause: a busy writer's notifications come faster than claims are worth
// their cost.
func (l *Loop) pause(ctx context.Context, began time.Time, wait time.Duration, wakeable bool) bool {
	if wait <= 0 {
		return ctx.Err() == nil
	}
	wake := l.wake
	if !wakeable {
		wake = nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	case <-wake:
	}
	timer.Reset(min(wait, max(notifyPause-time.Since(began), 0)))
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
