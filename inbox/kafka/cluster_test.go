package kafka

import (
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

// Topics that are missing for a moment are shared out as they were.
func TestMissingTopicStandsForAMoment(t *testing.T) {
	c := newCluster(nil, nil, nil)
	began := time.Now()
	topics := []string{"orders", "bills"}
	describe := func(after time.Duration, found map[string]topicLayout) map[string]int {
		known := layout{at: began.Add(after), topics: found}
		c.remember(known, topics)
		return known.counts(topics)
	}
	whole := topicLayout{id: topicID{1}, leaders: map[int32]int32{0: 1, 1: 2}}
	for _, step := range []struct {
		name          string
		after         time.Duration
		found         map[string]topicLayout
		orders, bills int
	}{
		{"at first", 0, map[string]topicLayout{"orders": whole}, 2, 0},
		{"missing", 5 * time.Second, map[string]topicLayout{}, 2, 0},
		{"without a leader", 10 * time.Second, map[string]topicLayout{"orders": {err: kafkago.LeaderNotAvailable}}, 2, 0},
		{"back", 20 * time.Second, map[string]topicLayout{"orders": whole}, 2, 0},
		{"missing again", 20*time.Second + missingAfter - 1, map[string]topicLayout{"orders": {err: kafkago.UnknownTopicOrPartition}}, 2, 0},
		{"gone", 20*time.Second + missingAfter, map[string]topicLayout{"orders": {err: kafkago.UnknownTopicOrPartition}}, 0, 0},
		{"with another number of partitions", 60 * time.Second, map[string]topicLayout{"orders": {leaders: map[int32]int32{0: 1}}, "bills": whole}, 1, 2},
	} {
		if got := describe(step.after, step.found); got["orders"] != step.orders || got["bills"] != step.bills {
			t.Errorf("%s: %v", step.name, got)
		}
	}
}
