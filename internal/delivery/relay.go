package delivery

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/internal/tracing"
	"github.com/outboxrelay/relay/sinks"
)

// Source hands out the batches of one pipeline. The claims return nil where nothing is
// pending; they and Resettle are called by one goroutine.
type Source interface {
	Claim(ctx context.Context, exclude source.Exclusion) (source.Batch, error)
	// ClaimHeld is Claim for messages that Claim leaves out, because they or an
	// earlier one of their key were refused, and whose time has come.
	ClaimHeld(ctx context.Context, exclude source.Exclusion) (source.Batch, error)
	// ClaimNamed is Claim for some messages, by their ids, whatever an exclusion leaves out.
	ClaimNamed(ctx context.Context, ids []int64) (source.Batch, error)
	// HeldDue returns when ClaimHeld is worth a call, and false while it is not. The
	// zero time: at once, although the last call returned nothing.
	HeldDue() (time.Time, bool)
	// Unsettled is how many messages were published and could not be settled, which Resettle tries
	// again. It returns an UnsettledError while some are left.
	Unsettled() int
	Resettle(ctx context.Context) error
	// Ping reaches the database without claiming anything.
	Ping(ctx context.Context) error
	// Notified tells that a message was committed a moment ago. It may be called from anywhere.
	Notified()
}

// Options of a Relay.
type Options struct {
	// Source makes the source of each pipeline.
	Source func(Pipeline) Source
	Routes *route.Table
	Sinks  map[string]sinks.Publisher
	// Workers is the number of batches of a pipeline under way at most, and Connections that of
	// the database which all of them share; 0 is no bound.
	Workers, Connections int
	PollInterval         time.Duration
	PublishTimeout       time.Duration
	// TotalOrder: a message that fails holds back all others.
	TotalOrder bool
	Failures   Failures
	// Copies are published of dead letters.
	Copies Copies
	// ShutdownTimeout bounds what is under way when Run's context ends.
	ShutdownTimeout time.Duration
	Logger          *slog.Logger
	// Observer is told what happens; nil is the no-op observer.
	Observer Observer
	// Tracer traces the batches; nil: nobody does.
	Tracer *tracing.Tracer
}

// Pipeline is what a source hands out messages for.
type Pipeline struct {
	// Name is the sink's. It is empty for the rows that no route matches, and for all rows where there is only one pipeline.
	Name string
	// Filter selects the rows.
	Filter route.Filter
	// Everything: it selects all rows, whatever the filter says.
	Everything bool
	// Workers is the number of batches under way at most.
	Workers int
}

// Relay moves messages from the sources to the sinks, in a pipeline for each sink. They share
// nothing but the database: a sink that is away, or slow, is a pipeline that waits.
type Relay struct {
	options   Options
	pipelines []*pipeline
	breakers  map[string]*sinkBreaker
}

// New returns a Relay that does nothing before Run.
func New(options Options) *Relay {
	if options.Observer == nil {
		options.Observer = noObserver{}
	}
	r := &Relay{options: options, breakers: make(map[string]*sinkBreaker, len(options.Sinks))}
	for name, publisher := range options.Sinks {
		r.breakers[name] = newSinkBreaker(name, publisher, options.Failures.Backoff, options.Logger, r.wake,
			func(up bool) { options.Observer.SinkUp(name, up) })
	}
	database := &outage{backoff: options.Failures.Backoff, logger: options.Logger, what: "the outbox"}
	for _, p := range r.plan() {
		r.pipelines = append(r.pipelines, newPipeline(p, &r.options, r.breakers, database))
	}
	return r
}

// plan divides the rows among pipelines, and the connections of the database. A total order has one for all of them.
func (r *Relay) plan() (pipelines []Pipeline) {
	o := &r.options
	if o.TotalOrder || o.Routes == nil {
		return []Pipeline{{Everything: true, Workers: o.Workers}}
	}
	for name := range o.Sinks {
		if filter := o.Routes.Filter(name); !filter.None() {
			pipelines = append(pipelines, Pipeline{Name: name, Filter: filter, Everything: filter.All()})
		}
	}
	slices.SortFunc(pipelines, func(a, b Pipeline) int { return cmp.Compare(a.Name, b.Name) })
	workers := o.Workers
	if o.Connections > 0 && len(pipelines) > 0 {
		workers = min(workers, max(o.Connections/len(pipelines), 1))
	}
	for i := range pipelines {
		pipelines[i].Workers = workers
	}
	if unrouted := o.Routes.Unrouted(); !unrouted.None() {
		pipelines = append(pipelines, Pipeline{Filter: unrouted, Everything: unrouted.All(), Workers: 1})
	}
	return pipelines
}

// Wake makes the pipelines look for messages now rather than at their next poll, since some were
// committed. It does not block and may be called from anywhere.
func (r *Relay) Wake() {
	for _, p := range r.pipelines {
		p.source.Notified()
	}
	r.wake()
}

// wake ends all pauses.
func (r *Relay) wake() {
	for _, p := range r.pipelines {
		p.wakeUp()
	}
}

// Ready reports whether the database was reached and the pipelines run.
func (r *Relay) Ready() bool {
	for _, p := range r.pipelines {
		if !p.ready.Load() {
			return false
		}
	}
	return len(r.pipelines) > 0
}

// Live returns an error when a pipeline has not turned for longer than all bounds
// of a turn together: then something hangs that nothing ends, and only a new
// process helps. An absent database or broker is no such thing.
func (r *Relay) Live() error {
	var errs []error
	for _, p := range r.pipelines {
		errs = append(errs, p.live())
	}
	return errors.Join(errs...)
}

// Run relays until ctx ends. Then it claims no more, lets what is under way
// finish within ShutdownTimeout, and returns; past it, what the broker
// acknowledged is settled and the rest given back.
func (r *Relay) Run(ctx context.Context) {
	var running sync.WaitGroup
	for _, b := range r.breakers {
		running.Go(func() { b.monitor(ctx) })
	}
	for _, p := range r.pipelines {
		running.Go(func() { p.run(ctx) })
	}
	running.Wait()
}
