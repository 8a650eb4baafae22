// Package delivery moves messages from a source through the routes to the
// sinks and settles them. It is the only place that backs off: a source or a
// sink that fails says so at once, and the loop decides who waits, for how long.
package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/internal/tracing"
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

// Source hands out batches. Claim and ClaimHeld return nil where nothing is
// pending; they are called by one goroutine.
type Source interface {
	Claim(ctx context.Context, exclude source.Exclusion) (source.Batch, error)
	// ClaimHeld is Claim for messages that Claim leaves out, because they or an
	// earlier one of their key were refused, and whose time has come.
	ClaimHeld(ctx context.Context, exclude source.Exclusion) (source.Batch, error)
	// HeldDue returns when ClaimHeld is worth a call, and false while it is not. The
	// zero time: at once, although the last call returned nothing.
	HeldDue() (time.Time, bool)
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
	Failures   Failures
	// Copies are published of dead letters.
	Copies Copies
	// ShutdownTimeout bounds what is under way when Run's context ends.
	ShutdownTimeout time.Duration
	Logger          *slog.Logger
	// Observer is told what happens; nil: nobody.
	Observer Observer
	// Tracer traces the batches; nil: nobody does.
	Tracer *tracing.Tracer
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
	// turned is when the loop last turned, or was half way because it claimed twice,
	// in Unix nanoseconds; zero while it does not run.
	turned atomic.Int64
	// pinged is when the database was last asked for its own sake.
	pinged time.Time

	turns turns
	// heldOutage is of held back messages alone.
	heldOutage outage

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
		heldOutage: outage{
			backoff: options.Failures.Backoff, logger: options.Logger, what: "the outbox's held back messages",
		},
	}
	if l.options.Observer == nil {
		l.options.Observer = nobody{}
	}
	for name, publisher := range options.Sinks {
		l.gates[name] = newGate(name, publisher, options.Failures.Backoff, options.Logger, l.Wake,
			func(up bool) { l.options.Observer.SinkUp(name, up) })
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

// wedgedMargin is added to what a turn of the loop may take by its bounds.
const wedgedMargin = 30 * time.Second

// Live returns an error when the loop has not turned for longer than all bounds
// of a turn together: then something hangs that nothing ends, and only a new
// process helps. An absent database or broker is no such thing.
func (l *Loop) Live() error {
	turned := l.turned.Load()
	if turned == 0 {
		return nil
	}
	limit := l.options.PollInterval + 2*l.options.PublishTimeout + settleTimeout + wedgedMargin
	if since := time.Since(time.Unix(0, turned)); since > limit {
		return fmt.Errorf("the relay has not looked for messages for %s, although it should every %s at least: it hangs, start it anew",
			since.Round(time.Second), limit)
	}
	return nil
}

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
	database := outage{backoff: l.options.Failures.Backoff, logger: l.options.Logger, what: "the outbox"}
	defer l.turned.Store(0)
	for {
		l.turned.Store(time.Now().UnixNano())
		select {
		case <-ctx.Done():
			return
		case l.slots <- struct{}{}:
		}
		began := time.Now()
		batch, held, wait, err := l.claim(ctx)
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
			l.options.Observer.DatabaseUp(false)
		default:
			database.over()
			l.ready.Store(true)
			l.options.Observer.DatabaseUp(true)
		}
		if batch == nil {
			<-l.slots
			if err == nil {
				wait = min(wait, pace.after(began, false, false))
			}
		} else {
			l.options.Observer.Claimed(time.Since(began), len(batch.Messages()))
			wait = 0 // what is held back says nothing about the others
			if !held {
				wait = pace.after(began, true, batch.Full())
			}
			trace := l.options.Tracer.Batch(began, len(batch.Messages()), held)
			d := l.route(batch, held)
			d.trace = trace
			go func() {
				defer func() { <-l.slots }()
				l.deliver(publishing, d)
				trace.End()
				if held {
					l.turns.ended()
				}
				// What waited behind a batch that took long does not wait for a pause
				// that grew meanwhile.
				if held || time.Since(began) > busyFor {
					l.Wake()
				}
			}()
		}
		if !l.pause(ctx, began, wait, err == nil) {
			return
		}
	}
}

// claim returns the next batch, and whether it was held back; nil without an
// error when nothing may be claimed, and how long that stays so at most.
func (l *Loop) claim(ctx context.Context) (batch source.Batch, held bool, wait time.Duration, err error) {
	now := time.Now()
	exclusion, wait, any := l.exclude(now)
	if !any {
		// Nobody to publish to; the database's state is of interest all the same.
		if now.Sub(l.pinged) < databasePing {
			return nil, false, wait, errNotTried
		}
		l.pinged = now
		return nil, false, wait, l.options.Source.Ping(ctx)
	}
	due, any := l.options.Source.HeldDue()
	tried := any && l.turns.held(now, due)
	var heldErr error
	if tried {
		began := time.Now()
		batch, heldErr = l.options.Source.ClaimHeld(ctx, exclusion)
		if heldErr != nil {
			l.turns.failed(began, time.Now())
		} else {
			l.turns.claimed(time.Now(), batch != nil)
			l.heldOutage.over()
		}
		if batch != nil || ctx.Err() != nil {
			return batch, true, wait, heldErr
		}
		// The bounds of a turn are those of one claim, and this was one.
		l.turned.Store(time.Now().UnixNano())
	}
	// What is held back may fail by itself, and nobody else waits for that.
	batch, err = l.options.Source.Claim(ctx, exclusion)
	if heldErr != nil && err == nil { // or it is the same for both, and the caller tells
		l.heldOutage.failed(heldErr)
	}
	if due, any = l.options.Source.HeldDue(); any {
		wait = min(wait, l.turns.wait(time.Now(), due))
	}
	return batch, false, wait, err
}

// pause waits before the next claim, and reports false when ctx ended. A wake
// ends the wait, but claims do not begin sooner one after the other than by
// notifyPause, or by busyPause while a batch is under way: a busy writer's
// notifications come faster than claims are worth their cost.
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
	spacing := notifyPause
	if len(l.slots) > 0 {
		spacing = busyPause
	}
	timer.Reset(min(wait, max(spacing-time.Since(began), 0)))
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
