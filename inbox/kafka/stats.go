package kafka

// Stats are what a Consumer does, and counts of what it did since it was made.
type Stats struct {
	// Messages by what became of them: see inbox.Result.
	Processed, Duplicates, Late, Stale int64
	// Failures are failed attempts that count, Panics those of them that were
	// panics.
	Failures, Panics int64
	// Contentions are transactions that failed because others were in the way
	// (locks, deadlocks, serialization failures), which count as no attempt.
	Contentions int64
	// Poisoned messages were handed to OnPoison.
	Poisoned int64
	// BreakerOpen says that messages wait because several in a row failed alike,
	// see Config.BreakerThreshold; Paused that some or all do for Pause.
	BreakerOpen, Paused bool
	// Partitions is the number of those that are assigned to this member now.
	Partitions int64
	// Lag is the number of messages in them that are yet to be processed; more
	// where a topic is compacted or has transactions.
	Lag int64
}

// Stats may be called at any time.
func (c *Consumer) Stats() Stats {
	n := c.runner.Counts()
	stats := Stats{
		Processed: n.Processed, Duplicates: n.Duplicates, Late: n.Late, Stale: n.Stale,
		Failures: n.Failures, Panics: n.Panics, Contentions: n.Contentions, Poisoned: n.Poisoned,
		BreakerOpen: c.runner.BreakerOpen(), Paused: len(c.runner.Paused()) > 0, Partitions: c.assigned.Load(),
	}
	if current := c.current.Load(); current != nil && stats.Partitions > 0 {
		stats.Lag = current.lag()
	}
	return stats
}
