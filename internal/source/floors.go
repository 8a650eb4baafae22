package source

import "time"

const (
	// floorLag is how long a position waits before it becomes a floor: a
	// transaction that commits within it is found at once, though its ids are
	// lower than others' that were published meanwhile.
	floorLag = 500 * time.Millisecond
	// fullLookInterval bounds how long a row below its shard's floor stays
	// unseen.
	fullLookInterval = time.Second
	// fullLookShare bounds the share of time that full looks may take where
	// they are slow, because a long transaction elsewhere keeps dead index
	// entries from being removed: one part in so many.
	fullLookShare = 20
)

// floors remembers per shard up to which id all rows were taken, so that a
// claim need not walk over the index entries of rows that were published long
// ago but are still visible to somebody. It is an accelerator only: rows commit
// out of id order, so what lies below a floor is looked at again, at least
// every fullLookInterval. Not safe for concurrent use.
type floors struct {
	// reached is the last id that was taken, floor the same some time ago, and
	// between them pending becomes the floor at due.
	reached, pending, floor [Shards]int64
	due                     time.Time
	nextFullLook            time.Time
	version                 uint64
}

// begin returns the floors to use for a look that starts now: nil for a full
// one. version is that of the claim's Exclusion.
func (f *floors) begin(now time.Time, version uint64) *[Shards]int64 {
	if version != f.version {
		f.version = version
		f.reset()
	}
	if !now.Before(f.nextFullLook) {
		return nil
	}
	if !now.Before(f.due) {
		for i := range f.floor {
			f.floor[i] = max(f.floor[i], f.pending[i])
		}
		f.pending = f.reached
		f.due = now.Add(floorLag)
	}
	return &f.floor
}

// looked tells how long a full look took.
func (f *floors) looked(now time.Time, took time.Duration) {
	f.nextFullLook = now.Add(max(fullLookInterval, fullLookShare*took))
}

// reach tells that all rows of the shard up to id were taken. settled says that
// the row with that id is older than floorLag, as it is where a backlog is
// worked off: then the position is a floor at once.
func (f *floors) reach(shard int, id int64, settled bool) {
	first, last := shard, shard
	if shard == allShards {
		first, last = 0, Shards-1
	}
	for i := first; i <= last; i++ {
		f.reached[i] = max(f.reached[i], id)
		if settled {
			f.floor[i] = max(f.floor[i], id)
		}
	}
}

// reset forgets everything: rows that were taken are pending again.
func (f *floors) reset() {
	f.reached, f.pending, f.floor = [Shards]int64{}, [Shards]int64{}, [Shards]int64{}
	f.due, f.nextFullLook = time.Time{}, time.Time{}
}
