package metrics

import (
	"strings"
	"sync"
)

// topics bounds the values of the label topic. The first ones keep their names
// as long as the process runs, so that no series changes its meaning.
type topics struct {
	mutex sync.RWMutex
	known map[string]struct{}
}

func newTopics() topics { return topics{known: map[string]struct{}{}} }

// label is the topic, or OtherTopics when there are too many.
func (t *topics) label(topic string) string {
	topic = strings.ToValidUTF8(topic, "\uFFFD") // Prometheus takes nothing else
	t.mutex.RLock()
	_, known := t.known[topic]
	t.mutex.RUnlock()
	if known {
		return topic
	}
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if _, known := t.known[topic]; !known && len(t.known) >= MaxTopics {
		return OtherTopics
	}
	t.known[topic] = struct{}{}
	return topic
}

// labels lists all values that the label has had.
func (t *topics) labels() []string {
	t.mutex.RLock()
	defer t.mutex.RUnlock()
	labels := make([]string, 0, len(t.known)+1)
	for topic := range t.known {
		labels = append(labels, topic)
	}
	if len(t.known) >= MaxTopics {
		labels = append(labels, OtherTopics)
	}
	return labels
}
