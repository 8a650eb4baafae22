package kafka

import (
	"errors"
	"sync/atomic"

	"github.com/outboxrelay/relay/inbox"
)

// Stats are what a Consumer does, and counts of what it did since it was made.
type Stats struct {
	// Messages by what became of them: see inbox.Result.
	Processed, Duplicates, Late, Stale int64
	// Failures are failed attempts that count, Panics those of them that were
	// panics.
	Failures, Panics int64
	// Poisoned messages were handed to OnPoison.
	Poisoned int64
	// Partitions is the number of those that are assigned to this member now.
	Partitions int64
	// Lag is the number of messages in them that are yet to be processed; more
	// where a topic is compacted or has transactions.
	Lag int64
}

type counters struct {
	processed, duplicates, late, stale, failures, panics, poisoned atomic.Int64
}

func (c *counters) count(results []inbox.Result) {
	for _, result := range results {
		switch result {
		case inbox.Processed:
			c.processed.Add(1)
		case inbox.Duplicate:
			c.duplicates.Add(1)
		case inbox.Late:
			c.late.Add(1)
		case inbox.Stale:
			c.stale.Add(1)
		case inbox.Unprocessed: // does not come without an error
		}
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
	stats := Stats{
		Processed: n.processed.Load(), Duplicates: n.duplicates.Load(), Late: n.late.Load(), Stale: n.stale.Load(),
		Failures: n.failures.Load(), Panics: n.panics.Load(), Poisoned: n.poisoned.Load(), Partitions: c.assigned.Load(),
	}
	if current := c.current.Load(); current != nil && stats.Partitions > 0 {
		stats.Lag = current.lag()
	}
	return stats
}
