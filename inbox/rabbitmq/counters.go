package rabbitmq

// Stats are what a Consumer does, and counts of what it did since it was made.
type Stats struct {
	// Messages that were acknowledged, by what became of them: see
	// inbox.Result.
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
	// see Config.BreakerThreshold; Paused that they do for Pause.
	BreakerOpen, Paused bool
	// Interruptions are subscriptions that were lost, and attempts to
	// subscribe that failed.
	Interruptions int64
}

// Stats may be called at any time.
func (c *Consumer) Stats() Stats {
	n := c.runner.Counts()
	return Stats{
		Processed: n.Processed, Duplicates: n.Duplicates, Late: n.Late, Stale: n.Stale,
		Failures: n.Failures, Panics: n.Panics, Contentions: n.Contentions, Poisoned: n.Poisoned,
		BreakerOpen: c.runner.BreakerOpen(), Paused: len(c.runner.Paused()) > 0, Interruptions: c.interruptions.Load(),
	}
}
