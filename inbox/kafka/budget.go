package kafka

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// turnLasts is for how long a response may hold memory that others wait for.
const turnLasts = time.Second

// budget bounds what the partitions of a consumer hold of what the brokers
// sent. A quarter is for messages that are being processed, in equal parts. Of the
// rest, total, half is shared out evenly, so that no partition waits for a
// handler of another one. The other half is for what does not fit into a share:
// large batches and the windows of decompressors. There partitions take turns:
// a response that has held some of it for long is given up for who waits, and
// its partition fetches the rest again.
type budget struct {
	mu         sync.Mutex
	windows    int
	total      int
	partitions int
	// free is what is left of the common half, waiting are those who want of it.
	free    int
	waiting []*claim
	// holders have some of it, since when.
	holders map[*lease]time.Time
}

type claim struct {
	bytes   int
	granted chan struct{}
}

func newBudget(bytes int) *budget {
	total := bytes - bytes/4
	return &budget{windows: bytes / 4, total: total, free: total / 2, partitions: 1, holders: make(map[*lease]time.Time)}
}

// window is what each partition's messages may take while they are processed.
func (b *budget) window() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(b.windows/b.partitions, 1)
}

// divide says how many partitions share the budget.
func (b *budget) divide(partitions int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.partitions = max(partitions, 1)
}

// share is the part of each partition.
func (b *budget) share() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(b.total/2/b.partitions, 1)
}

// take waits for bytes of the common half; what exceeds all of it gets all.
func (b *budget) take(ctx context.Context, bytes int) (taken int, err error) {
	b.mu.Lock()
	bytes = min(bytes, b.total/2)
	if len(b.waiting) == 0 && b.free >= bytes {
		b.free -= bytes
		b.mu.Unlock()
		return bytes, nil
	}
	mine := &claim{bytes: bytes, granted: make(chan struct{})}
	b.waiting = append(b.waiting, mine)
	b.mu.Unlock()
	ticker := time.NewTicker(turnLasts / 4)
	defer ticker.Stop()
	for {
		select {
		case <-mine.granted:
			return bytes, nil
		case <-ticker.C:
			b.evict()
		case <-ctx.Done():
			b.mu.Lock()
			if i := slices.Index(b.waiting, mine); i >= 0 {
				b.waiting = slices.Delete(b.waiting, i, i+1)
				bytes = 0
			}
			b.mu.Unlock()
			b.give(bytes)
			return 0, context.Cause(ctx)
		}
	}
}

// try takes bytes if nobody has to wait for them.
func (b *budget) try(bytes int) (taken int, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	bytes = min(bytes, b.total/2)
	if len(b.waiting) > 0 || b.free < bytes {
		return 0, false
	}
	b.free -= bytes
	return bytes, true
}

func (b *budget) give(bytes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += bytes
	for len(b.waiting) > 0 && b.free >= b.waiting[0].bytes {
		b.free -= b.waiting[0].bytes
		close(b.waiting[0].granted)
		b.waiting = b.waiting[1:]
	}
}

// evict ends the longest turn that is over.
func (b *budget) evict() {
	b.mu.Lock()
	holders := slices.SortedFunc(maps.Keys(b.holders), func(x, y *lease) int { return b.holders[x].Compare(b.holders[y]) })
	for i, l := range holders {
		if time.Since(b.holders[l]) < turnLasts {
			holders = holders[:i]
			break
		}
	}
	b.mu.Unlock()
	for _, l := range holders {
		if l.evict() {
			return // perhaps it suffices
		}
	}
}

// hold notes who may be evicted.
func (b *budget) hold(l *lease, holds bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if holds {
		b.holders[l] = time.Now()
	} else {
		delete(b.holders, l)
	}
}

// lease is what one response takes of the budget.
type lease struct {
	budget *budget
	// own is the partition's share, common what is taken beside it.
	own, common int
	// most is the most that was wanted at a time.
	most int
	// evict gives the response up, unless it is being read.
	evict func() bool
}

// yieldError says that a response was given up for want of memory.
type yieldError struct{ wanted int }

func (yieldError) Error() string { return "no memory is left for the response" }

// admit waits until a response may take bytes.
func (l *lease) admit(ctx context.Context, bytes int) error {
	l.most = max(l.most, bytes)
	if bytes <= l.own {
		return nil
	}
	taken, err := l.budget.take(ctx, bytes-l.own)
	l.common = taken
	if taken > 0 {
		l.budget.hold(l, true)
	}
	return err
}

// grow raises what the response takes to bytes. Who has something of the common
// half does not wait for more of it, lest two wait for each other; it has to
// start again with all that it wants.
func (l *lease) grow(ctx context.Context, bytes int) error {
	l.most = max(l.most, bytes)
	more := min(bytes-l.own, l.budget.total/2) - l.common
	switch {
	case more <= 0:
		return nil
	case l.common == 0:
		return l.admit(ctx, bytes)
	}
	taken, ok := l.budget.try(more)
	if !ok {
		return yieldError{wanted: l.most}
	}
	l.common += taken
	return nil
}

func (l *lease) release() {
	if l.common > 0 {
		l.budget.hold(l, false)
		l.budget.give(l.common)
		l.common = 0
	}
}
