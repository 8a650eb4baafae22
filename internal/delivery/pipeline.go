package delivery

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

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
	// wedgedMargin is added to what a turn of a pipeline may take by its bounds.
	wedgedMargin = 30 * time.Second
	// notifyPause is how soon after a claim a notification may cause the next one
	// when no batch is under way.
	notifyPause = time.Millisecond
	// forever is longer than any wait of a pipeline.
	forever = time.Hour
	// maxTried bounds the rows that breakers are tried with in one batch.
	maxTried = 1000
)

// errNotTried says that the database was not asked.
var errNotTried = errors.New("not tried")

// pipeline claims, routes, publishes and settles the messages of one sink, or in a total order
// those of all.
type pipeline struct {
	*Options
	name   string
	source Source
	// sinks are those that it publishes to, and all also that of dead letters' copies.
	sinks, all map[string]*sinkBreaker
	// wake ends the wait for the next claim.
	wake chan struct{}
	// slots holds one token per batch that may be under way.
	slots chan struct{}
	ready atomic.Bool
	// turned is when the pipeline last turned, or was half way because it claimed twice,
	// in Unix nanoseconds; zero while it does not run.
	turned atomic.Int64
	// pinged is when the database was last asked for its own sake.
	pinged time.Time

	turns    turns
	database *outage
	// heldOutage is of held back messages alone.
	heldOutage outage
	marks      marks
	deliveries sync.Pool

	mutex    sync.Mutex
	breakers *breakers
}

func newPipeline(p Pipeline, options *Options, all map[string]*sinkBreaker, database *outage) *pipeline {
	l := &pipeline{
		Options: options, name: p.Name, all: all, sinks: all,
		wake:     make(chan struct{}, 1),
		slots:    make(chan struct{}, p.Workers),
		database: database,
		heldOutage: outage{
			backoff: options.Failures.Backoff, logger: options.Logger, what: "the outbox's held back messages",
		},
		marks: marks{backoff: options.Failures.Backoff, logger: options.Logger},
	}
	if options.Source != nil {
		l.source = options.Source(p)
	}
	switch {
	case p.Name != "":
		l.sinks = map[string]*sinkBreaker{p.Name: all[p.Name]}
	case !p.Everything: // what no route matches
		l.sinks = nil
	}
	l.breakers = newBreakers(options.Routes, l.partitioner)
	l.deliveries.New = func() any { return new(delivery) }
	return l
}

// partitioner returns the sink's publisher if it knows partitions.
func (p *pipeline) partitioner(sink string) sinks.Partitioner {
	partitioner, _ := p.Sinks[sink].(sinks.Partitioner)
	return partitioner
}

// layouts changes whenever a message may go to another partition than before.
func (p *pipeline) layouts() (sum uint64) {
	for sink := range p.sinks {
		if partitioner := p.partitioner(sink); partitioner != nil {
			sum += partitioner.Layouts()
		}
	}
	return sum
}

// wakeUp ends the wait for the next claim, without blocking.
func (p *pipeline) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pipeline) live() error {
	turned := p.turned.Load()
	if turned == 0 {
		return nil
	}
	limit := p.PollInterval + 2*p.PublishTimeout + settleTimeout + wedgedMargin
	if since := time.Since(time.Unix(0, turned)); since > limit {
		return fmt.Errorf("the relay has not looked for messages for %s, although it should every %s at least: it is stuck; restart it",
			since.Round(time.Second), limit)
	}
	return nil
}

// run claims until ctx ends, and returns when what was under way has ended.
func (p *pipeline) run(ctx context.Context) {
	publishing, stopPublishing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPublishing()
	p.claimAll(ctx, publishing)
	p.ready.Store(false)
	bound := time.AfterFunc(p.ShutdownTimeout, stopPublishing)
	defer bound.Stop()
	for range cap(p.slots) {
		p.slots <- struct{}{} // every batch has ended when all slots are free
	}
}

// claimAll claims batch after batch until ctx ends.
func (p *pipeline) claimAll(ctx, publishing context.Context) {
	pace := pace{pollInterval: p.PollInterval}
	var failures int
	defer p.turned.Store(0)
	defer p.database.gone(p)
	for {
		p.turned.Store(time.Now().UnixNano())
		select {
		case <-ctx.Done():
			return
		case p.slots <- struct{}{}:
		}
		began := time.Now()
		claimed, wait, err := p.claim(ctx)
		switch {
		case errors.Is(err, errNotTried):
			err = nil
		case ctx.Err() != nil && err != nil: // stopping is not the database's failure
			err = nil
		case err != nil && source.IsTransient(err):
			p.again(err)
			wait = busyPause
		case err != nil:
			failures++
			wait = p.database.failed(p, err, failures)
			p.Observer.DatabaseUp(false)
		default:
			failures = 0
			if p.database.over(p) {
				p.Observer.DatabaseUp(true)
			}
			p.ready.Store(true)
		}
		if claimed.batch == nil {
			<-p.slots
			p.notTried()
			if err == nil {
				wait = min(wait, pace.after(began, false, false))
			}
		} else {
			p.Observer.Claimed(time.Since(began), len(claimed.batch.Messages()))
			wait = 0 // what is held back or tried again says nothing about the others
			if !claimed.held && claimed.tried == nil {
				wait = pace.after(began, true, claimed.batch.Full())
			}
			p.start(publishing, began, claimed)
		}
		if !p.pause(ctx, began, wait, err == nil) {
			return
		}
	}
}

// again reports why a claim is made again at once.
func (p *pipeline) again(err error) {
	if text, ok := errors.AsType[*source.TextError](err); ok {
		p.Logger.Warn("messages are parked whose text cannot be converted to UTF-8; their keys wait until the rows are corrected, others go on",
			"ids", text.IDs, "reason", "encoding", "error", err, "remedy", source.Explain(err).Remedy)
		return
	}
	p.Logger.Debug("claim again", "reason", err)
}

// start publishes and settles a batch in a goroutine that gives the slot back.
func (p *pipeline) start(publishing context.Context, began time.Time, claimed claimed) {
	trace := p.Tracer.Batch(began, len(claimed.batch.Messages()), claimed.held)
	d := p.route(claimed)
	d.trace = trace
	go func() {
		defer func() {
			<-p.slots
			p.notTried() // a claim meanwhile may have been in doubt whether this one tries it
		}()
		p.deliver(publishing, d)
		trace.End()
		if claimed.held {
			p.turns.ended()
		}
		// What waited behind a batch that took long does not wait for a pause
		// that grew meanwhile.
		if claimed.held || claimed.tried != nil || time.Since(began) > busyFor {
			p.wakeUp()
		}
	}()
}

// claimed is a batch, and whether its messages were held back, or are there to try breakers.
type claimed struct {
	batch source.Batch
	held  bool
	tried []*breaker
}

// claim returns the next batch; none without an
// error when nothing may be claimed, and how long that stays so at most.
func (p *pipeline) claim(ctx context.Context) (c claimed, wait time.Duration, err error) {
	now := time.Now()
	wait, any := p.mayClaim(now)
	if any && p.source.Unsettled() > 0 {
		if wait, any = p.resettle(ctx, now, wait); !any {
			return c, wait, nil
		}
	}
	if !any {
		// Nobody to publish to; the database's state is of interest all the same.
		if now.Sub(p.pinged) < databasePing {
			return c, wait, errNotTried
		}
		p.pinged = now
		return c, wait, p.source.Ping(ctx)
	}
	if tried, next, err := p.try(ctx, now); tried.batch != nil || err != nil {
		return tried, wait, err
	} else if !next.IsZero() {
		wait = min(wait, max(next.Sub(now), 0))
	}
	exclusion := p.exclusion()
	due, any := p.source.HeldDue()
	var heldErr error
	if any && p.turns.held(now, due) {
		began := time.Now()
		c.batch, heldErr = p.source.ClaimHeld(ctx, exclusion)
		if heldErr != nil && source.IsTransient(heldErr) {
			p.again(heldErr)
			heldErr = nil
			p.turns.claimed(time.Now(), false)
		} else if heldErr != nil {
			p.turns.failed(began, time.Now())
		} else {
			p.turns.claimed(time.Now(), c.batch != nil)
			p.heldOutage.over(p)
		}
		if c.batch != nil || ctx.Err() != nil {
			c.held = true
			return c, wait, heldErr
		}
		// The bounds of a turn are those of one claim, and this was one.
		p.turned.Store(time.Now().UnixNano())
	}
	// What is held back may fail by itself, and nobody else waits for that.
	c.batch, err = p.source.Claim(ctx, exclusion)
	if heldErr != nil && err == nil { // or it is the same for both, and the caller tells
		p.heldOutage.failed(p, heldErr, 1)
	}
	if due, any = p.source.HeldDue(); any {
		wait = min(wait, p.turns.wait(time.Now(), due))
	}
	return c, wait, err
}

// mayClaim reports whether there is anything to claim for, and how long that stays so at most.
func (p *pipeline) mayClaim(now time.Time) (wait time.Duration, any bool) {
	wait = forever
	open := 0
	for _, b := range p.sinks {
		if !b.passes() {
			open++
		}
	}
	if open > 0 && (p.TotalOrder || open == len(p.sinks)) {
		return wait, false
	}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	until, held := p.breakers.all(now)
	if held {
		return max(until.Sub(now), 0), false
	}
	if p.breakers.everything != nil {
		p.breakers.everything.trying = true
	}
	return wait, true
}

// notTried tells that a claim that would have tried the total order's breaker found nothing.
func (p *pipeline) notTried() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.breakers.everything != nil && len(p.slots) == 0 {
		p.breakers.everything.trying = false
	}
}

// exclusion is what the next claim leaves out.
func (p *pipeline) exclusion() source.Exclusion {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	layouts := p.layouts()
	p.breakers.regroup(layouts)
	shrunk := p.breakers.shrunk
	exclusion := source.Exclusion{Shrunk: shrunk}
	if len(p.breakers.places)+len(p.breakers.keys)+len(p.breakers.ids) > 0 {
		exclusion.Holds = func(row *source.Row) bool {
			p.mutex.Lock()
			defer p.mutex.Unlock()
			// A breaker that closes during the claim lets its rows go on from the first one, which
			// this claim may have passed: all that it reads waits for the next one. So does it where
			// rows go to other partitions than before.
			return p.breakers.shrunk != shrunk || p.breakers.holds(row) || p.layouts() != layouts
		}
	}
	return exclusion
}

// try claims rows that breakers were opened by, where their pause is over, and returns when the next one's is.
func (p *pipeline) try(ctx context.Context, now time.Time) (c claimed, next time.Time, err error) {
	p.mutex.Lock()
	due, ids, next := p.breakers.due(now, maxTried)
	p.mutex.Unlock()
	if len(due) == 0 {
		return c, next, nil
	}
	c.batch, err = p.source.ClaimNamed(ctx, ids)
	if err != nil {
		return claimed{}, next, err
	}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.breakers.tried(now, due, c.batch, p.Failures.Backoff)
	c.tried = due
	return c, next, nil
}

// resettle settles what was published and could not be settled, and reports whether anything may be claimed:
// not while nothing at all can be settled.
func (p *pipeline) resettle(ctx context.Context, now time.Time, wait time.Duration) (time.Duration, bool) {
	until, claims := p.marks.due(now)
	if now.Before(until) {
		return min(wait, until.Sub(now)), claims
	}
	err := p.source.Resettle(ctx)
	if ctx.Err() != nil {
		return wait, false
	}
	return min(wait, p.marks.tried(err)), p.marks.claims()
}

// pause waits before the next claim, and reports false when ctx ended. A wake
// ends the wait, but claims do not begin sooner one after the other than by
// notifyPause, or by busyPause while a batch is under way: a busy writer's
// notifications come faster than claims are worth their cost.
func (p *pipeline) pause(ctx context.Context, began time.Time, wait time.Duration, wakeable bool) bool {
	if wait <= 0 {
		return ctx.Err() == nil
	}
	wake := p.wake
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
	if len(p.slots) > 0 {
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
