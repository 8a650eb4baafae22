package kafka

import (
	"slices"
	"sync"

	"github.com/outboxrelay/relay/inbox/internal/consume"
)

// reach tells the inbox's observer which topics can be read: the group has this
// member, and no partition of the topic is in trouble.
type reach struct {
	config *Config

	mu sync.Mutex
	// topics are those that are read.
	topics []string
	// member: the coordinator answers.
	member bool
	// troubled are partitions that cannot be read.
	troubled map[partitionID]bool
	// up is what was told of the topics.
	up map[string]bool
}

func newReach(config *Config) *reach {
	return &reach{config: config, topics: config.Topics, troubled: make(map[partitionID]bool), up: make(map[string]bool)}
}

// unknown is called when Run begins.
func (r *reach) unknown() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.member = false
	clear(r.troubled)
	clear(r.up) // so that all of it is told
	r.tell()
}

// read says which topics are read.
func (r *reach) read(topics []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.topics = slices.Clone(topics)
	r.tell()
}

func (r *reach) group(ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.member == ok {
		return
	}
	r.member = ok
	r.tell()
}

func (r *reach) partition(id partitionID, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.troubled[id] != ok {
		return
	}
	if ok {
		delete(r.troubled, id)
	} else {
		r.troubled[id] = true
	}
	r.tell()
}

// forget is called when a partition is somebody else's business.
func (r *reach) forget(id partitionID) { r.partition(id, true) }

func (r *reach) tell() {
	if r.config.Inbox.Observer == nil {
		return
	}
	for _, topic := range slices.Compact(slices.Sorted(slices.Values(r.topics))) {
		up := r.member
		for id := range r.troubled {
			up = up && id.topic != topic
		}
		if was, told := r.up[topic]; !told || was != up {
			r.up[topic] = up
			consume.ObserverOf(r.config.Inbox).BrokerUp(r.config.Inbox.Consumer, topic, up)
		}
	}
}
