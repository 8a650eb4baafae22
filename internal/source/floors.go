package source

import (
	"slices"
	"time"
)

const (
	// writersInterval is how often the claimer asks who is writing to the table:
	// while a backlog goes, dead index entries pile up by the thousand in it.
	writersInterval = 20 * time.Millisecond
	// fullLookInterval bounds how long a row stays unseen that is pending below
	// its shard's floor against all rules, because somebody made a published
	// row pending again.
	fullLookInterval = time.Second
	// fullLookShare bounds the share of time that full looks may take where
	// they are slow, because a long transaction elsewhere keeps dead index
	// entries from being removed: one part in so many.
	fullLookShare = 20
)

// floors remembers per shard an id up to which no row is pending nor will ever
// be, so that a claim need not walk over the index entries of rows that were
// published but cannot be removed yet.
//
// That all rows below were published does not make an id a floor: ids commit
// out of order, and a row that commits late, below the floor, would be
// overtaken by later rows of its key above it. So a position becomes a floor
// only when every transaction has ended that could write to the table while
// the position was reached: a transaction holds its lock on the table from
// before it takes an id to its end. Not safe for concurrent use.
type floors struct {
	// reached is up to where all rows were published, asked the same when the
	// writers were last asked for.
	reached, asked [Shards]int64
	// candidate becomes floor when all of writers have ended.
	candidate, floor [Shards]int64
	waiting          bool
	writers          []string
	nextQuestion     time.Time
	nextFullLook     time.Time
	version          uint64
	// epoch counts resets.
	epoch uint64
}

// begin returns the floors to use for a look that starts now, nil for a full
// one, and whether the table's writers are to be asked for and told to
// answered. version is that of the claim's Exclusion.
func (f *floors) begin(now time.Time, version uint64) (floor *[Shards]int64, ask bool) {
	if version != f.version {
		f.version = version
		f.reset()
	}
	if ask = f.floor != f.reached && !now.Before(f.nextQuestion); ask {
		f.nextQuestion = now.Add(writersInterval)
		f.asked = f.reached
	}
	if !now.Before(f.nextFullLook) {
		return nil, ask
	}
	return &f.floor, ask
}

// answered takes the transactions that could write to the table at a time
// after begin returned.
func (f *floors) answered(writers []string) {
	if f.waiting && slices.ContainsFunc(f.writers, func(w string) bool { return slices.Contains(writers, w) }) {
		return
	}
	if f.waiting {
		f.floor = f.candidate
	}
	f.candidate, f.writers, f.waiting = f.asked, writers, true
	if len(writers) == 0 {
		f.floor, f.waiting = f.asked, false
	}
}

// looked tells how long a full look took.
func (f *floors) looked(now time.Time, took time.Duration) {
	f.nextFullLook = now.Add(max(fullLookInterval, fullLookShare*took))
}

// reach tells that all rows of the shard up to id were published that a claim
// of the epoch could see. A claim from before a reset left rows that are wanted
// since: what it reached means nothing any more.
func (f *floors) reach(epoch uint64, shard int, id int64) {
	if epoch != f.epoch {
		return
	}
	if shard != allShards {
		f.reached[shard] = max(f.reached[shard], id)
		return
	}
	for i := range f.reached {
		f.reached[i] = max(f.reached[i], id)
	}
}

// reset forgets everything: rows that were passed may be wanted now.
func (f *floors) reset() {
	*f = floors{version: f.version, epoch: f.epoch + 1}
}
