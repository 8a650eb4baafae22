package consume

import (
	"errors"
	"sync/atomic"

	"github.com/outboxrelay/relay/inbox"
)

// Counts are what a Runner did since it was made.
type Counts struct {
	Processed, Duplicates, Late, Stale, Failures, Panics, Contentions, Poisoned int64
}

type counters struct {
	// results is indexed by inbox.Result.
	results                                 [inbox.Stale + 1]atomic.Int64
	failures, panics, contentions, poisoned atomic.Int64
}

func (c *counters) count(result inbox.Result) {
	if int(result) < len(c.results) {
		c.results[result].Add(1)
	}
}

func (c *counters) failed(err error) {
	c.failures.Add(1)
	if _, ok := errors.AsType[*PanicError](err); ok {
		c.panics.Add(1)
	}
}

// Counts may be called at any time.
func (r *Runner) Counts() Counts {
	c := &r.counters
	return Counts{
		Processed: c.results[inbox.Processed].Load(), Duplicates: c.results[inbox.Duplicate].Load(),
		Late: c.results[inbox.Late].Load(), Stale: c.results[inbox.Stale].Load(),
		Failures: c.failures.Load(), Panics: c.panics.Load(), Contentions: c.contentions.Load(), Poisoned: c.poisoned.Load(),
	}
}
