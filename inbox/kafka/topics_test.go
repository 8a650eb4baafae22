package kafka_test

import (
	"regexp"
	"slices"
	"testing"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/inbox/kafka"
)

// Topics that a pattern matches are read, also those that are made later; those
// that it matches in part are not.
func TestTopicPattern(t *testing.T) {
	for name, balancers := range map[string][]kafkago.GroupBalancer{"range": nil, "cooperative": {kafka.CooperativeSticky{}}} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, 2)
			first := s.topic
			create := func(name string) {
				t.Helper()
				await(t, "the topic is made", func() bool {
					response, err := s.client.CreateTopics(t.Context(), &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{Topic: name, NumPartitions: 2, ReplicationFactor: 1}}})
					return err == nil && response.Errors[name] == nil
				})
			}
			create("not-" + first)
			create(first + "-dead")
			config := s.config(effect)
			config.GroupBalancers = balancers
			config.Topics = nil
			config.TopicPattern = regexp.MustCompile(regexp.QuoteMeta(first) + "(-dead|-more)?")
			config.OnPoison = kafka.DeadLetter{Topic: first + "-dead"}
			members := []*consumer{start(t, config), start(t, config)}
			partitions := func() (n int64) {
				for _, m := range members {
					n += m.Stats().Partitions
				}
				return n
			}
			await(t, "both members read the topic", func() bool { return members[0].Stats().Partitions == 1 && members[1].Stats().Partitions == 1 })
			s.publish(0, 20, 2)
			s.awaitEffects(20)
			s.topic = "not-" + first
			s.publish(20, 40, 2)
			create(first + "-more")
			await(t, "the topic that was made later is read", func() bool { return partitions() == 4 })
			s.topic = first + "-more"
			s.publish(40, 60, 2)
			s.awaitEffects(40)
			for _, m := range members {
				m.mustStop()
			}
			if n := s.db.Int(t, `SELECT count(DISTINCT message_id) FROM effects`); n != 40 {
				t.Errorf("%d of 40 messages had an effect", n)
			}
			if got := s.committed(2); !slices.Equal(got, []int64{10, 10}) {
				t.Errorf("committed %v", got)
			}
		})
	}
}
