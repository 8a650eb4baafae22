package source

import (
	"math"
	"slices"
	"strings"
	"time"
)

const (
	// writersInterval is how often the claimer looks at most while rows come
	// fast: dead index entries pile up by the thousand in it.
	writersInterval = 20 * time.Millisecond
	// writersRows is after how many rows it looks so soon. Where few come, the question
	// would cost more than walking over what they leave behind.
	writersRows = 500
	// writersPause is after what time it looks however few rows came.
	writersPause = 250 * time.Millisecond
	// passAfter is how long floors wait for a writer before they pass it.
	passAfter = time.Second
	// maxDebts bounds the writers that floors have passed: each that ends takes the
	// floors back to where it began.
	maxDebts = 8
	// fullLookInterval bounds how long a row stays unseen that is pending below
	// its shard's floor against all rules: somebody made a published row pending
	// again, or the ids began anew.
	fullLookInterval = time.Second
	// lookShare bounds the share of time that looks may take that nothing waits for
	// where they are slow, because a long transaction elsewhere keeps dead index
	// entries from being removed: one part in so many.
	lookShare = 20
	// lookPause is what one full look may take, since claims wait for it; when
	// it takes longer, the next ones look at fewer shards.
	lookPause = 10 * time.Millisecond
	// lookLimit is what a look may take before it is given up; one that cannot become smaller may take up
	// to maxLookLimit.
	lookLimit    = 250 * time.Millisecond
	maxLookLimit = 8 * time.Second
	// stuckAfter is how long lifted floors may have to rise before claims look for rows behind what is left out by themselves.
	stuckAfter = 3 * time.Second
	// firstWalk is how many rows of a shard a look walks over at first to raise a lifted
	// floor; it grows eightfold while all of them are left out.
	firstWalk = 16
	// newWalk is how many they are where nobody has walked yet.
	newWalk = 1024
	// walkRows bounds the rows that one look walks over where each is judged here, and
	// summedRows where the server judges them, which costs a fraction.
	walkRows   = 16_384
	summedRows = 65_536
	// sweepRows is how many rows below the lifted floor of a shard are looked at again at a time.
	sweepRows = 2_048
)

// span is some shards, from the first on and without the last.
type span struct{ first, last int }

func (s span) empty() bool        { return s.first == s.last }
func (s span) has(shard int) bool { return shard >= s.first && shard < s.last }

// writer is a transaction that can write to the table, and its transaction id if it has one.
type writer struct{ name, xid string }

// debt is a writer that floors passed while it ran, and where they stood before: its rows
// lie above that.
type debt struct {
	xid  string
	from [Shards]int64
}

// walked is a row that a look walked over.
type walked struct {
	// walk is the place of the walk in the question.
	walk int
	id   int64
	// leftOut: claims leave it out until something changes that they notice.
	leftOut bool
	// draining: it waits behind an entry that is being drained.
	draining bool
}

// found is what a walk found.
type found struct {
	// rows is how many rows it walked over, and last the last one.
	rows int
	last int64
	// kept is the first that is not left out, and free the first that does not wait behind a draining
	// entry either; noRow for none.
	kept, free int64
}

// noRow is above all ids.
const noRow = math.MaxInt64

// sum is what walks found, of the rows that they walked over in their order.
func sum(walks int, rows []walked) []found {
	all := make([]found, walks)
	for i := range all {
		all[i] = found{kept: noRow, free: noRow}
	}
	for _, row := range rows {
		f := &all[row.walk]
		f.rows++
		f.last = row.id
		if !row.leftOut {
			f.kept = min(f.kept, row.id)
			if !row.draining {
				f.free = min(f.free, row.id)
			}
		}
	}
	return all
}

// floors remembers ids per shard that a claim need not look below, so that it does not walk over the
// index entries of rows that were published but cannot be removed yet, nor over
// a million rows that wait for something else. Not safe for concurrent use.
//
// No row is pending up to a base floor, nor will ever be. It takes two steps, the second after the
// first. An id is complete when no row
// up to it can appear any more: ids commit out of order, so all transactions
// must have ended that could write to the table when the id was seen; each
// holds its lock on the table from before it takes an id to its end. And a
// complete id is a floor when a look that began after that finds no pending row
// up to it: one that committed late may not have been seen by any claim, and one
// that was claimed, here or by another relay, may be given back.
//
// Up to a lifted floor, which is the base floor or above it, each pending row is one that claims leave out
// for now, by the same two steps. When fewer are left out it falls back to the base.
//
// A writer that runs for long does not keep ids from becoming complete, but leaves a debt: a claim that
// sees it ended reads nothing (logEndSQL), the next look takes the floors back to where they
// were before, and they rise again behind its rows. docs/design.md has the proofs.
type floors struct {
	// seen is the highest id that a claim or a look returned.
	seen [Shards]int64
	// candidate becomes complete when all of writers have ended.
	candidate, complete, base, lifted [Shards]int64

	waiting bool
	writers []writer
	since   time.Time
	debts   []debt
	// restricted: claims leave rows out; summed: the server can tell which, so that of walks only what they found is
	// asked for, and not each row.
	restricted, summed bool

	lastLook, nextLook, nextFullLook, nextSweep time.Time
	// full is what the next full look looks at, and shards what each look looks at.
	full, shards span
	// limit is what a look may take.
	limit time.Duration
	// rows were claimed since the last look, and heldBack those that a claim read in vain.
	rows, heldBack int
	// walks is how many rows of each shard the next look walks over.
	walks [Shards]int
	sweep struct {
		shard int
		from  int64
	}
	// most is how many rows a look walks over at most, as long as that takes what it may.
	most int
	// rose: a walk raised a lifted floor since measure was called last.
	rose bool
	// below is since when a lifted floor has been below what is complete; zero while none is.
	below time.Time
	// first is the shard that a bounded look begins with.
	first int
}

func newFloors() floors {
	f := floors{full: span{0, Shards}, shards: span{0, Shards}, limit: lookLimit, most: summedRows}
	f.base = lowestIDs()
	f.seen, f.candidate, f.complete, f.lifted = f.base, f.base, f.base, f.base
	f.sweep.from = math.MinInt64
	for i := range f.walks {
		f.walks[i] = firstWalk
	}
	return f
}

func lowestIDs() (ids [Shards]int64) {
	for i := range ids {
		ids[i] = math.MinInt64
	}
	return ids
}

// walk is a shard that a look walks along, from where, and for how many rows.
type walk struct {
	shard int
	floor int64
	rows  int
	sweep bool
}

// question is what a look asks.
type question struct {
	ask bool
	// shards are those whose lowest pending row is asked for, but for what is in full.
	shards span
	// full are the shards in which everything below the floor is looked at too.
	full  span
	walks []walk
}

// next returns what is to be asked for and told to answered.
func (f *floors) next(now time.Time) (q question) {
	if !now.Before(f.nextFullLook) {
		q.full = f.full
	}
	pause := writersPause
	switch {
	case f.rising():
		pause = 0 // but for nextLook
	case f.rows >= writersRows || f.heldBack > 0:
		pause = writersInterval
	}
	q.ask = !q.full.empty() || f.behind() && now.Sub(f.lastLook) >= pause && !now.Before(f.nextLook)
	if !q.ask {
		return q
	}
	f.lastLook, f.rows, f.heldBack = now, 0, 0
	q.shards = f.shards
	if !f.restricted {
		return q
	}
	left := f.longest()
	// Side by side, since neighbours lie on the same pages and are of all shards.
	each := left
	if behind := f.belowComplete(); behind > 0 {
		each = max(left/behind, firstWalk)
	}
	for i := range Shards {
		shard := (f.first + i) % Shards
		if f.lifted[shard] >= f.complete[shard] {
			continue
		}
		rows := f.walks[shard]
		if f.lifted[shard] == math.MinInt64 {
			rows = max(rows, newWalk) // who knows what waits since before this relay
		}
		rows = min(rows, each, left)
		if left -= rows; rows > 0 {
			q.walks = append(q.walks, walk{shard: shard, floor: f.lifted[shard], rows: rows})
		}
	}
	f.first = (f.first + 1) % Shards
	if !now.Before(f.nextSweep) {
		if w, ok := f.nextToSweep(); ok {
			q.walks = append(q.walks, w)
		}
	}
	return q
}

// belowComplete is the number of shards whose lifted floor can rise.
func (f *floors) belowComplete() (n int) {
	for shard := range f.lifted {
		if f.lifted[shard] < f.complete[shard] {
			n++
		}
	}
	return n
}

// longest is how many rows a look walks over at most.
func (f *floors) longest() int {
	if f.summed {
		return f.most
	}
	return min(f.most, walkRows)
}

// behind reports whether any floor can rise.
func (f *floors) behind() bool { return f.lifted != f.seen || f.base != f.seen || len(f.debts) > 0 }

// stuck reports whether lifted floors cannot rise, or have very much to rise over, so that what lies
// behind may be out of reach of claims.
func (f *floors) stuck(now time.Time) bool {
	return f.restricted && !f.below.IsZero() && now.Sub(f.below) > stuckAfter
}

// rising reports whether a look is under way over many rows that are left out.
func (f *floors) rising() bool {
	if !f.restricted {
		return false
	}
	for shard, rows := range f.walks {
		if rows > 8*firstWalk && f.lifted[shard] < f.complete[shard] { // twice in a row
			return true
		}
	}
	return false
}

// nextToSweep is a part of what lies between the floors of a shard.
func (f *floors) nextToSweep() (walk, bool) {
	for range Shards {
		shard := f.sweep.shard
		from := max(f.sweep.from, f.base[shard])
		if from < f.lifted[shard] {
			return walk{shard: shard, floor: from, rows: sweepRows, sweep: true}, true
		}
		f.sweep.shard, f.sweep.from = (shard+1)%Shards, math.MinInt64
	}
	return walk{}, false
}

// answered takes the lowest pending row of each shard that has any above its
// base floor, or, in the shards of the full look, any at all; what the walks found; and the
// transactions that could write to the table at the same time or later. It reports whether
// floors fell.
func (f *floors) answered(now time.Time, q *question, pending map[int]int64, walks []found, writers []writer) (fell bool) {
	for shard, id := range pending {
		if q.full.has(shard) && id <= f.base[shard] {
			f.restart()
			return true
		}
	}
	// What was read may be older than the end of a writer that is gone now.
	if f.settle(writers) {
		return true
	}
	for shard := range f.base {
		if !q.shards.has(shard) && !q.full.has(shard) {
			continue
		}
		floor := f.complete[shard]
		if id, ok := pending[shard]; ok {
			floor = min(floor, id-1)
		}
		f.base[shard] = max(f.base[shard], floor)
		f.lifted[shard] = max(f.lifted[shard], f.base[shard])
	}
	fell = f.lift(q.walks, walks)
	f.finish(now, writers)
	f.measure(now)
	return fell
}

// measure takes note whether lifted floors are where they could be. A floor below the first row that a claim may read
// is; one below rows that are not complete yet, as beside a writer that cannot be passed, is not.
func (f *floors) measure(now time.Time) {
	behind, rose := false, f.rose
	f.rose = false
	for shard := range f.walks {
		behind = behind || f.walks[shard] > firstWalk || f.waiting && f.lifted[shard] < f.candidate[shard]
	}
	switch {
	case !behind:
		f.below = time.Time{}
	case f.below.IsZero() || rose: // it only takes its time
		f.below = now
	}
}

// restart forgets everything: a row is pending where none can be.
func (f *floors) restart() {
	next, full, restricted, debts := f.nextFullLook, f.full, f.restricted, f.debts
	*f = newFloors()
	f.nextFullLook, f.full, f.restricted = next, full, restricted
	for _, d := range debts {
		f.debts = append(f.debts, debt{xid: d.xid, from: lowestIDs()})
	}
}

// settle takes the floors back for the writers that ended since they were passed, and
// reports whether there are any.
func (f *floors) settle(writers []writer) (any bool) {
	f.debts = slices.DeleteFunc(f.debts, func(d debt) bool {
		if slices.ContainsFunc(writers, func(w writer) bool { return w.xid == d.xid }) {
			return false
		}
		any = true
		for shard := range f.base {
			f.base[shard] = min(f.base[shard], d.from[shard])
			f.lifted[shard] = min(f.lifted[shard], d.from[shard])
		}
		return true
	})
	return any
}

// lift raises the lifted floors over rows that are left out, and reports whether one fell, since
// a row below it is left out no more.
func (f *floors) lift(walks []walk, all []found) (fell bool) {
	if !f.restricted {
		f.lifted = f.base
		return false
	}
	for i, w := range walks {
		if w.sweep {
			fell = f.swept(w, &all[i]) || fell
		} else {
			f.walked(w, &all[i])
		}
	}
	return fell
}

// walked raises the lifted floor of a shard to the first row that a claim may read.
func (f *floors) walked(w walk, of *found) {
	floor := f.complete[w.shard]
	full := of.rows == w.rows // who knows what is behind
	if full {
		f.saw(w.shard, of.last)
		floor = min(floor, of.last)
	}
	if of.kept != noRow {
		floor, full = min(floor, of.kept-1), false
	}
	if floor > f.lifted[w.shard] {
		f.lifted[w.shard], f.rose = floor, true
	}
	f.walks[w.shard] = firstWalk
	if full {
		f.walks[w.shard] = min(8*w.rows, f.longest())
	}
}

// swept takes over what a sweep found.
func (f *floors) swept(w walk, of *found) (fell bool) {
	if of.free <= f.lifted[w.shard] {
		f.lifted[w.shard] = of.free - 1
		return true
	}
	if of.rows < w.rows {
		f.sweep.shard, f.sweep.from = (w.shard+1)%Shards, math.MinInt64
	} else {
		f.sweep.from = of.last
	}
	return false
}

// finish decides which ids are complete.
func (f *floors) finish(now time.Time, writers []writer) {
	others := slices.DeleteFunc(slices.Clone(writers), func(w writer) bool { return f.owes(w.xid) })
	if f.waiting {
		running := slices.DeleteFunc(slices.Clone(others), func(w writer) bool { return !f.awaits(w) })
		if len(running) > 0 && !f.pass(now, running) {
			return
		}
		f.complete = f.candidate
		others = slices.DeleteFunc(others, func(w writer) bool { return f.owes(w.xid) })
	}
	f.candidate, f.writers, f.waiting, f.since = f.seen, others, true, now
	if len(others) == 0 {
		f.complete, f.waiting = f.seen, false
	}
}

// awaits reports whether w may be one of the writers that there were when the candidate was
// noted. A prepared transaction has another name after the server was restarted.
func (f *floors) awaits(w writer) bool {
	return strings.HasPrefix(w.name, "-1/") || slices.ContainsFunc(f.writers, func(o writer) bool { return o.name == w.name })
}

func (f *floors) owes(xid string) bool {
	return xid != "" && slices.ContainsFunc(f.debts, func(d debt) bool { return d.xid == xid })
}

// pass makes debts of writers that run for long. One that has no transaction id yet cannot be
// told from one that ended, and is waited for.
func (f *floors) pass(now time.Time, running []writer) bool {
	if now.Sub(f.since) < passAfter || len(f.debts)+len(running) > maxDebts ||
		slices.ContainsFunc(running, func(w writer) bool { return w.xid == "" }) {
		return false
	}
	for _, w := range running {
		f.debts = append(f.debts, debt{xid: w.xid, from: f.complete})
	}
	return true
}

// xids are the transactions that floors have passed.
func (f *floors) xids() []string {
	xids := make([]string, len(f.debts))
	for i := range f.debts {
		xids[i] = f.debts[i].xid
	}
	return xids
}

// drop takes lifted floors back to the base: less is left out than before.
func (f *floors) drop() {
	f.lifted = f.base
	f.sweep.from = math.MinInt64
}

// owed reports whether floors have passed writers, and makes the next claim look whether they have ended.
func (f *floors) owed() bool {
	if len(f.debts) == 0 {
		return false
	}
	f.lastLook, f.nextLook = time.Time{}, time.Time{}
	return true
}

// looked tells how long a look took.
func (f *floors) looked(now time.Time, q *question, took time.Duration) {
	if n := len(q.walks); n > 0 && q.walks[n-1].sweep {
		f.nextSweep = now.Add(max(writersInterval, lookShare*took))
	}
	switch {
	case took > f.limit/6:
		f.most = max(f.most/2, newWalk)
	case took < f.limit/12:
		f.most = min(2*f.most, summedRows)
	}
	f.nextLook = now
	if f.shards != (span{0, Shards}) || took > lookPause {
		f.nextLook = now.Add(took) // half of the time
		f.shards = f.shards.next(took)
		f.limit = lookLimit
	}
	if q.full.empty() {
		return
	}
	f.nextFullLook = now.Add(max(fullLookInterval*time.Duration(f.full.last-f.full.first)/Shards, lookShare*took))
	f.full = f.full.next(took)
}

// next is the span after s, larger if s took little time and smaller if it took much.
func (s span) next(took time.Duration) span {
	shards := s.last - s.first
	switch {
	case took > lookPause:
		shards = max(shards/2, 1)
	case took < lookPause/4:
		shards *= 2
	}
	first := s.last % Shards
	return span{first, min(first+shards, Shards)}
}

// failed tells that a look took longer than it may: the next ones ask for less, and
// where that is impossible they may take longer.
func (f *floors) failed(now time.Time, q *question) {
	limit := f.limit
	f.looked(now, q, limit)
	if q.shards.last-q.shards.first == 1 {
		f.limit = min(2*limit, maxLookLimit)
	}
	f.nextLook = now.Add(lookShare * limit)
	if len(q.walks) > 0 && f.most > newWalk {
		f.most = max(f.most/8, newWalk)
		f.nextLook = now.Add(limit) // the next one asks for much less
	}
	f.lastLook = now
	for _, w := range q.walks {
		f.walks[w.shard] = max(w.rows/8, 1)
	}
}

// claimed tells how many rows a claim returned, and how many more it read that were left out then.
func (f *floors) claimed(rows, heldBack int) {
	f.rows += rows
	f.heldBack += heldBack
}

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
