package kafka

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// avoidFor is how long messages that may go to any partition stay away from one
// that took none; then some of them try it again.
const avoidFor = 10 * time.Second

// avoided are partitions that take nothing for now.
type avoided struct {
	// n spares everybody the lock while there are none.
	n     atomic.Int32
	mu    sync.Mutex
	until map[partitionName]time.Time
}

func (a *avoided) add(name partitionName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.until == nil {
		a.until = map[partitionName]time.Time{}
	}
	a.until[name] = time.Now().Add(avoidFor)
	a.n.Store(int32(len(a.until)))
}

func (a *avoided) remove(name partitionName) {
	if a.n.Load() == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.until, name)
	a.n.Store(int32(len(a.until)))
}

// filter returns those of a topic's partitions that are not avoided.
func (a *avoided) filter(topic string, partitions []int32) []int32 {
	if a.n.Load() == 0 {
		return partitions
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	open := slices.DeleteFunc(slices.Clone(partitions), func(partition int32) bool {
		name := partitionName{topic, partition}
		until, ok := a.until[name]
		if ok && now.After(until) {
			delete(a.until, name)
		}
		return now.Before(until)
	})
	a.n.Store(int32(len(a.until)))
	return open
}

// open returns the partitions for messages that may go to any: those that have a
// leader and took what came last, else those that have a leader, else all.
func (p *Publisher) open(topic string, layout *layout) []int32 {
	if open := p.avoided.filter(topic, layout.led); len(open) > 0 {
		return open
	}
	if len(layout.led) > 0 {
		return layout.led
	}
	all := make([]int32, len(layout.leaders))
	for i := range all {
		all[i] = int32(i)
	}
	return all
}

// partitionOf returns the partition that the Java client's default partitioner
// chooses for a key, so that JVM producers and the relay agree.
func partitionOf(key []byte, partitions int) int32 {
	return int32(murmur2(key)&0x7fffffff) % int32(partitions)
}

// murmur2 is org.apache.kafka.common.utils.Utils.murmur2.
func murmur2(data []byte) uint32 {
	const (
		seed = 0x9747b28c
		m    = 0x5bd1e995
		r    = 24
	)
	h := uint32(seed) ^ uint32(len(data))
	for len(data) >= 4 {
		k := uint32(data[0]) | uint32(data[1])<<8 | uint32(data[2])<<16 | uint32(data[3])<<24
		k *= m
		k ^= k >> r
		k *= m
		h *= m
		h ^= k
		data = data[4:]
	}
	switch len(data) {
	case 3:
		h ^= uint32(data[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(data[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(data[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return h
}
