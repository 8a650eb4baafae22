package metrics

import "time"

// TopicBacklog is what waits in one topic.
type TopicBacklog struct {
	Topic   string
	Pending int64
	// OldestAge is of the oldest pending message, in seconds.
	OldestAge               float64
	ParkedKeys, DeadLetters int64
}

// Backlog takes over what waits, topic by topic; topics that it does not name
// any more have nothing. It is for one goroutine.
func (r *Relay) Backlog(now time.Time, backlog []TopicBacklog) {
	sums := map[string]TopicBacklog{}
	for _, label := range r.topics.labels() {
		sums[label] = TopicBacklog{}
	}
	for _, b := range backlog {
		label := r.topics.label(b.Topic)
		sum := sums[label]
		sum.Pending += b.Pending
		sum.OldestAge = max(sum.OldestAge, b.OldestAge)
		sum.ParkedKeys += b.ParkedKeys
		sum.DeadLetters += b.DeadLetters
		sums[label] = sum
	}
	for label, sum := range sums {
		r.pending.WithLabelValues(label).Set(float64(sum.Pending))
		r.oldest.WithLabelValues(label).Set(sum.OldestAge)
		r.parkedKeys.WithLabelValues(label).Set(float64(sum.ParkedKeys))
		r.deadLetters.WithLabelValues(label).Set(float64(sum.DeadLetters))
		if len(r.sinks) == 1 {
			r.begin(label, r.sinks[0])
		}
	}
	r.backlogAge.Set(float64(now.UnixMilli()) / 1000)
}
