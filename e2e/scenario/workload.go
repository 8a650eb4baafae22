package scenario

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Workload is what applications do: concurrent transactions, some of which
// roll back, as a whole or to a savepoint. Its zero value is complete.
type Workload struct {
	// Writers is how many write side by side; 0 is 6.
	Writers int
	// Keys is the number of keys in each topic; 0 is 40.
	Keys int
	// Rate bounds all writers' transactions per second; 0 is 100.
	Rate float64
	// Rows is the number of rows in a transaction at most; 0 is 4.
	Rows int
	// NullKeys is the share of rows without a key, in percent; 0 is 5, negative
	// none.
	NullKeys int
	// AsyncCommit sets synchronous_commit = off in every transaction.
	AsyncCommit bool
	// Notify wakes the relays.
	Notify bool
	// Unreliable: the database goes away at times, and writers try again.
	Unreliable bool
}

func (w Workload) complete() Workload {
	w.Writers = cmp.Or(w.Writers, 6)
	w.Keys = cmp.Or(w.Keys, 40)
	w.Rate = cmp.Or(w.Rate, 100)
	w.Rows = cmp.Or(w.Rows, 4)
	w.NullKeys = cmp.Or(w.NullKeys, 5)
	return w
}

// Load is a workload under way.
type Load struct {
	stage  *Stage
	cancel context.CancelFunc
	done   sync.WaitGroup
	// committed and failed count transactions.
	committed, rolledBack, failed atomic.Int64
}

// StartLoad starts the writers. Stop ends them; the test's end does too.
func (s *Stage) StartLoad(w Workload) *Load {
	s.t.Helper()
	w = w.complete()
	ctx, cancel := context.WithCancel(s.t.Context())
	load := &Load{stage: s, cancel: cancel}
	for i := range w.Writers {
		writer := &writer{Workload: w, stage: s, load: load, random: s.Random(uint64(s.loads<<16 + i))} //nolint:gosec // small numbers
		load.done.Go(func() { writer.run(ctx) })
	}
	s.loads++ // the next one draws other message ids
	s.t.Cleanup(func() {
		cancel()
		load.done.Wait()
	})
	return load
}

// Stop ends the writers, each after its transaction.
func (l *Load) Stop() {
	l.stage.t.Helper()
	l.cancel()
	l.done.Wait()
	l.stage.t.Logf("transactions: %d committed, %d rolled back, %d failed", l.committed.Load(), l.rolledBack.Load(), l.failed.Load())
}

// Committed is how many transactions were committed so far.
func (l *Load) Committed() int64 { return l.committed.Load() }

// Load lets the workload run for a while.
func (s *Stage) Load(w Workload, duration time.Duration) {
	s.t.Helper()
	load := s.StartLoad(w)
	time.Sleep(duration)
	load.Stop()
}
