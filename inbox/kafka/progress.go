package kafka

import (
	"context"
	"maps"
	"sync"
)

// progress is how far the partitions of a generation are processed. Each
// partition raises its own offset, and only when all messages below are
// settled; one goroutine commits them.
type progress struct {
	mu sync.Mutex
	// done are the offsets of the messages to be processed next, committed
	// those of them that the group knows.
	done, committed map[partitionID]int64
	// ends are the offsets after the partitions' last messages.
	ends map[partitionID]int64
	// changed is closed, and replaced, when offsets were committed.
	changed chan struct{}
	// urgent asks for a commit at once.
	urgent chan struct{}
}

func newProgress(committed map[partitionID]int64) *progress {
	return &progress{
		done: maps.Clone(committed), committed: maps.Clone(committed), ends: make(map[partitionID]int64),
		changed: make(chan struct{}), urgent: make(chan struct{}, 1),
	}
}

// settle says that all messages of a partition below offset are settled.
func (p *progress) settle(partition partitionID, offset int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done[partition] = offset
}

// saw says where a partition ends.
func (p *progress) saw(partition partitionID, end int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ends[partition] = end
}

// lag is the number of messages, roughly, that are yet to be processed.
func (p *progress) lag() (n int64) {
	for _, lag := range p.lags() {
		n += lag
	}
	return n
}

// lags are those of the partitions that were read.
func (p *progress) lags() map[partitionID]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	lags := make(map[partitionID]int64, len(p.ends))
	for partition, end := range p.ends {
		lags[partition] = max(0, end-max(0, p.done[partition]))
	}
	return lags
}

// pending are the offsets yet to be committed.
func (p *progress) pending() map[partitionID]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	pending := make(map[partitionID]int64)
	for partition, offset := range p.done {
		if offset != p.committed[partition] {
			pending[partition] = offset
		}
	}
	return pending
}

// recorded says that offsets were committed.
func (p *progress) recorded(offsets map[partitionID]int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.Copy(p.committed, offsets)
	close(p.changed)
	p.changed = make(chan struct{})
}

// await has a partition's offset committed, and returns when it is or ctx has
// ended.
func (p *progress) await(ctx context.Context, partition partitionID, offset int64) {
	p.settle(partition, offset)
	for {
		p.mu.Lock()
		done, changed := p.committed[partition] == offset, p.changed
		p.mu.Unlock()
		if done {
			return
		}
		select {
		case p.urgent <- struct{}{}:
		default: // it is asked for
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
