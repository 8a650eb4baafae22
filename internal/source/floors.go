package source

import (
	"math"
	"slices"
	"strings"
	"time"
)

const (
	// writersInterval is how often the claimer asks at most who is writing to the
	// table: while a backlog goes, dead index entries pile up by the thousand in it.
	writersInterval = 20 * time.Millisecond
	// writersRows is after how many rows it asks. Where few come, the question
	// would cost more than walking over what they leave behind.
	writersRows = 500
	// writersPause is after what time it asks however few rows came.
	writersPause = 250 * time.Millisecond
	// fullLookInterval bounds how long a row stays unseen that is pending below
	// its shard's floor against all rules: somebody made a published row pending
	// again, or the ids began anew.
	fullLookInterval = time.Second
	// fullLookShare bounds the share of time that full looks may take where
	// they are slow, because a long transaction elsewhere keeps dead index
	// entries from being removed, or because very many rows wait behind parked
	// ones: one part in so many.
	fullLookShare = 20
	// fullLookPause is what one full look may take, since claims wait for it; when
	// it takes longer, the next ones look at fewer shards.
	fullLookPause = 10 * time.Millisecond
)

// span is some shards, from the first on and without the last.
type span struct{ first, last int }

func (s span) empty() bool        { return s.first == s.last }
func (s span) has(shard int) bool { return shard >= s.first && shard < s.last }

// lowest is the lowest pending row of a shard.
type lowest struct {
	id int64
	// draining: its key is being drained by another claim than those that begin at
	// the floor, and may lie below it.
	draining bool
}

// floors remembers per shard an id up to which no row is pending nor will ever
// be, so that a claim need not walk over the index entries of rows that were
// published but cannot be removed yet.
//
// It takes two steps, the second after the first. An id is complete when no row
// up to it can appear any more: ids commit out of order, so all transactions
// must have ended that could write to the table when the id was seen; each
// holds its lock on the table from before it takes an id to its end. And a
// complete id is a floor when a look that began after that finds no pending row
// up to it: one that committed late may not have been seen by any claim, and one
// that was claimed, here or by another relay, may be given back. Not safe for
// concurrent use.
type floors struct {
	// seen is the highest id that a claim returned.
	seen [Shards]int64
	// candidate becomes complete when all of writers have ended.
	candidate, complete, floor [Shards]int64
	waiting                    bool
	writers                    []string
	lastQuestion, nextFullLook time.Time
	// full is what the next full look looks at.
	full span
	// rows were claimed since the last question.
	rows int
}

func newFloors() floors {
	f := floors{full: span{0, Shards}}
	for i := range f.floor {
		f.floor[i] = math.MinInt64
	}
	f.seen, f.candidate, f.complete = f.floor, f.floor, f.floor
	return f
}

// begin reports whether the lowest pending rows and the writers are to be asked
// for and told to answered, and in which shards from the beginning.
func (f *floors) begin(now time.Time) (ask bool, full span) {
	if !now.Before(f.nextFullLook) {
		full = f.full
	}
	pause := writersPause
	if f.rows >= writersRows {
		pause = writersInterval
	}
	ask = !full.empty() || f.floor != f.seen && now.Sub(f.lastQuestion) >= pause
	if ask {
		f.lastQuestion, f.rows = now, 0
	}
	return ask, full
}

// answered takes the lowest pending row of each shard that has any above its
// floor, or, in the shards of full, any at all; and the transactions that could
// write to the table at the same time or later.
func (f *floors) answered(full span, pending map[int]lowest, writers []string) {
	for shard, l := range pending {
		if full.has(shard) && !l.draining && l.id <= f.floor[shard] {
			next, span := f.nextFullLook, f.full
			*f = newFloors()
			f.nextFullLook, f.full = next, span
			return
		}
	}
	for shard := range f.floor {
		floor := f.complete[shard]
		if l, ok := pending[shard]; ok {
			floor = min(floor, l.id-1)
		}
		f.floor[shard] = max(f.floor[shard], floor)
	}
	// A prepared transaction has another name after the server was started anew.
	if f.waiting && slices.ContainsFunc(writers, func(w string) bool {
		return strings.HasPrefix(w, "-1/") || slices.Contains(f.writers, w)
	}) {
		return
	}
	if f.waiting {
		f.complete = f.candidate
	}
	f.candidate, f.writers, f.waiting = f.seen, writers, true
	if len(writers) == 0 {
		f.complete, f.waiting = f.seen, false
	}
}

// looked tells how long a full look took.
func (f *floors) looked(now time.Time, took time.Duration) {
	shards := f.full.last - f.full.first
	f.nextFullLook = now.Add(max(fullLookInterval*time.Duration(shards)/Shards, fullLookShare*took))
	switch {
	case took > fullLookPause:
		shards = max(shards/2, 1)
	case took < fullLookPause/4:
		shards *= 2
	}
	first := f.full.last % Shards
	f.full = span{first, min(first+shards, Shards)}
}

// claimed tells how many rows a claim returned.
func (f *floors) claimed(rows int) { f.rows += rows }

// saw tells that a claim returned a row; shard allShards stands for every one.
func (f *floors) saw(shard int, id int64) {
	if shard != allShards {
		f.seen[shard] = max(f.seen[shard], id)
		return
	}
	for i := range f.seen {
		f.seen[i] = max(f.seen[i], id)
	}
}
