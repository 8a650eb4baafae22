package kafka

import "sync"

// layout is the number of partitions of each topic in use.
type layout struct {
	mu     sync.RWMutex
	topics map[string]int
}

// partitions returns the topic's number of partitions, 0 while it is unknown.
func (l *layout) partitions(topic string) int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.topics[topic]
}

// set notes the topic's number of partitions; 0 forgets it.
func (l *layout) set(topic string, partitions int) {
	if l.partitions(topic) == partitions {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if partitions == 0 {
		delete(l.topics, topic)
		return
	}
	if l.topics == nil {
		l.topics = map[string]int{}
	}
	l.topics[topic] = partitions
}
