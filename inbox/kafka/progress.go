package kafka

import (
	"context"
	"slices"
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
	// topics are the identities of the topics that are read, known those that
	// are recorded with the offsets.
	topics, known map[partitionID]topicID
	// eras are those of the records that were read, in their order.
	eras map[partitionID][]era
	// ends are the offsets after the partitions' last messages.
	ends map[partitionID]int64
	// changed is closed, and replaced, when offsets were committed.
	changed chan struct{}
	// urgent asks for a commit at once.
	urgent chan struct{}
}

// position is how far a partition is processed, and of which topic.
type position struct {
	offset int64
	topic  topicID
	// epoch is the leader's that wrote the record before offset, -1 where that is
	// not known.
	epoch int32
}

// era is where records of a leader's epoch begin.
type era struct {
	from  int64
	epoch int32
}

func newProgress() *progress {
	return &progress{
		done: make(map[partitionID]int64), committed: make(map[partitionID]int64), ends: make(map[partitionID]int64),
		topics: make(map[partitionID]topicID), known: make(map[partitionID]topicID),
		eras:    make(map[partitionID][]era),
		changed: make(chan struct{}), urgent: make(chan struct{}, 1),
	}
}

// settle says that all messages of a partition below offset are settled.
func (p *progress) settle(partition partitionID, offset int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done[partition] = offset
}

// add begins with a partition, remove ends with it.
func (p *progress) add(partition partitionID, from position) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done[partition], p.committed[partition] = from.offset, from.offset
	p.topics[partition], p.known[partition] = from.topic, from.topic
	p.eras[partition] = []era{{-1, from.epoch}}
}

func (p *progress) remove(partition partitionID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.done, partition)
	delete(p.committed, partition)
	delete(p.topics, partition)
	delete(p.known, partition)
	delete(p.eras, partition)
	delete(p.ends, partition)
}

// identify says which topic is read.
func (p *progress) identify(partition partitionID, topic topicID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.topics[partition] = topic
}

// begins says that records from an offset on are of a leader's epoch.
func (p *progress) begins(partition partitionID, from int64, epoch int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	eras := p.eras[partition]
	if len(eras) == 0 || eras[len(eras)-1].epoch != epoch {
		p.eras[partition] = append(eras, era{from, epoch})
	}
}

// forget says that the epochs of what was read say nothing any more.
func (p *progress) forget(partition partitionID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.eras[partition] = nil
}

// epochOf is the epoch of the record before an offset.
func (p *progress) epochOf(partition partitionID, offset int64) int32 {
	for _, e := range slices.Backward(p.eras[partition]) {
		if e.from < offset {
			return e.epoch
		}
	}
	return -1
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

// pending are the positions yet to be committed.
func (p *progress) pending() map[partitionID]position {
	p.mu.Lock()
	defer p.mu.Unlock()
	pending := make(map[partitionID]position)
	for partition, offset := range p.done {
		if offset >= 0 && (offset != p.committed[partition] || p.topics[partition] != p.known[partition]) {
			pending[partition] = position{offset, p.topics[partition], p.epochOf(partition, offset)}
		}
	}
	return pending
}

// recorded says that positions were committed.
func (p *progress) recorded(positions map[partitionID]position) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for partition, position := range positions {
		if _, ok := p.done[partition]; !ok {
			continue // given up meanwhile
		}
		p.committed[partition], p.known[partition] = position.offset, position.topic
	}
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
