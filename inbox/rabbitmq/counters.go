package rabbitmq

import (
	"errors"
	"sync/atomic"

	"github.com/outboxrelay/relay/inbox"
)

// Stats counts what a Consumer did since it was made.
type Stats struct {
	// Messages that were acknowledged, by what became of them: see
	// inbox.Result.
	Processed, Duplicates, Late, Stale int64
	// Failures are failed attempts that count, Panics those of them that were
	// panics.
	Failures, Panics int64
	// Poisoned messages were handed to OnPoison.
	Poisoned int64
	// Interruptions are subscriptions that were lost, and attempts to
	// subscribe that failed.
	Interruptions int64
}

type counters struct {
	processed, duplicates, late, stale, failures, panics, poisoned, interruptions atomic.Int64
}

func (c *counters) count(result inbox.Result) {
	switch result {
	case inbox.Processed:
		c.processed.Add(1)
	case inbox.Duplicate:
		c.duplicates.Add(1)
	case inbox.Late:
		c.late.Add(1)
	case inbox.Stale:
		c.stale.Add(1)
	}
}

func (c *counters) failed(err error) {
	c.failures.Add(1)
	if _, ok := errors.AsType[*PanicError](err); ok {
		c.panics.Add(1)
	}
}

// Stats may be called at any time.
func (c *Consumer) Stats() Stats {
	n := &c.counters
	return Stats{
		Processed: n.processed.Load(), Duplicates: n.duplicates.Load(), Late: n.late.Load(), Stale: n.stale.Load(),
		Failures: n.failures.Load(), Panics: n.panics.Load(),
		Poisoned: n.poisoned.Load(), Interruptions: n.interruptions.Load(),
	}
}
