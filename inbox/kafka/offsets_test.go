package kafka_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

// After a topic was made anew the group's offsets are beyond its end.
func TestOffsetBeyondTheEnd(t *testing.T) {
	s := newStage(t, 1)
	s.publish(0, 10, 1)
	s.commit(1000, "")
	c := start(t, s.config(effect))
	s.awaitEffects(10)
	await(t, "the offset is right", func() bool { return s.committed(1)[0] == 10 })
	c.mustStop()
	s.checkEffects(10)
}

// A consumer of the newest messages does not process the history when its
// offset is beyond the end.
func TestOffsetBeyondTheEndOfWhoBeganAtTheEnd(t *testing.T) {
	s := newStage(t, 1)
	s.publish(0, 500, 1)
	config := s.config(effect)
	config.StartOffset = kafkago.LastOffset
	c := start(t, config)
	await(t, "begun", func() bool { return s.committed(1)[0] == 500 })
	s.publish(500, 510, 1)
	s.awaitEffects(10)
	c.mustStop()
	s.commit(515, "")
	c = start(t, config)
	await(t, "the offset is the end's", func() bool { return s.committed(1)[0] == 510 })
	s.publish(510, 520, 1)
	s.awaitEffects(20)
	c.mustStop()
	if n := s.db.Int(t, `SELECT count(*) FROM effects WHERE "offset" < 500`); n != 0 {
		t.Errorf("%d messages were processed that had been passed over", n)
	}
	s.checkEffects(20)
}

// A topic that was made anew is read from its beginning, also where it is
// longer by now than the group's offset: nothing tells that but its id.
func TestTopicMadeAnew(t *testing.T) {
	for _, running := range []bool{false, true} {
		t.Run(fmt.Sprint("running=", running), func(t *testing.T) {
			s := newStage(t, 1)
			s.publish(0, 10, 1)
			log := &syncBuffer{}
			config := s.config(effect)
			config.Logger = newLogger(log)
			c := start(t, config)
			s.awaitEffects(10)
			await(t, "all is committed", func() bool { return s.committed(1)[0] == 10 })
			before, err := s.client.OffsetFetch(t.Context(), &kafkago.OffsetFetchRequest{GroupID: s.group, Topics: map[string][]int{s.topic: {0}}})
			if err != nil {
				t.Fatal(err)
			}
			if !running {
				c.mustStop()
			}
			_, err = s.client.DeleteTopics(t.Context(), &kafkago.DeleteTopicsRequest{Topics: []string{s.topic}})
			if err != nil {
				t.Fatal(err)
			}
			await(t, "the topic is made anew", func() bool {
				response, err := s.client.CreateTopics(t.Context(), &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{Topic: s.topic, NumPartitions: 1, ReplicationFactor: 1}}})
				return err == nil && response.Errors[s.topic] == nil
			})
			s.publish(10, 40, 1)
			if !running {
				// A coordinator that hears of the deletion forgets the offset; one
				// that was away does not, nor does a tool that copies groups.
				s.commit(10, before.Topics[s.topic][0].Metadata)
				c = start(t, config)
			}
			s.awaitEffects(40)
			await(t, "all is committed", func() bool { return s.committed(1)[0] == 30 })
			c.mustStop()
			if got := s.db.Int(t, `SELECT count(DISTINCT message_id) FROM effects`); got != 40 {
				t.Errorf("%d of 40 messages had an effect", got)
			}
			if !strings.Contains(log.String(), "the topic was made anew") {
				t.Error("nothing is said of it:\n" + log.String())
			}
		})
	}
}

// commit sets the offset of partition 0, in the name of no member.
func (s *stage) commit(offset int64, note string) {
	s.t.Helper()
	await(s.t, "the coordinator takes an offset", func() bool {
		response, err := s.client.OffsetCommit(s.t.Context(), &kafkago.OffsetCommitRequest{
			GroupID: s.group, GenerationID: -1, Topics: map[string][]kafkago.OffsetCommit{s.topic: {{Partition: 0, Offset: offset, Metadata: note}}},
		})
		return err == nil && response.Topics[s.topic][0].Error == nil
	})
}

// Compaction removes records in the middle and at the end of batches. Each
// response has one batch here, so that no later one tells where it ends.
func TestCompactedTopic(t *testing.T) {
	t.Parallel()
	s := newStage(t, 1,
		kafkago.ConfigEntry{ConfigName: "cleanup.policy", ConfigValue: "compact"},
		kafkago.ConfigEntry{ConfigName: "segment.bytes", ConfigValue: "1048576"},
		kafkago.ConfigEntry{ConfigName: "min.cleanable.dirty.ratio", ConfigValue: "0.001"},
		kafkago.ConfigEntry{ConfigName: "max.compaction.lag.ms", ConfigValue: "1"},
	)
	const batches = 90
	filler := bytes.Repeat([]byte("x"), 20_000)
	for n := range batches {
		keep, gone := s.record(2*n), s.record(2*n+1)
		keep.Key, keep.Value = kafkago.NewBytes(fmt.Append(nil, n)), kafkago.NewBytes(filler)
		gone.Key, gone.Value = kafkago.NewBytes([]byte("same")), kafkago.NewBytes(filler)
		s.produce(0, keep, gone)
	}
	await(t, "the broker has compacted the topic", func() bool {
		response, err := s.client.Fetch(t.Context(), &kafkago.FetchRequest{Topic: s.topic, Offset: 0, MinBytes: 1, MaxBytes: 1, MaxWait: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for {
			if _, err := response.Records.ReadRecord(); err != nil {
				break
			}
			n++
		}
		return n == 1
	})
	config := s.config(effect)
	config.FetchBytes = 1
	c := start(t, config)
	await(t, "the end is reached", func() bool { return slices.Equal(s.committed(1), []int64{2 * batches}) })
	c.mustStop()
	if n := s.db.Int(t, `SELECT count(*) FROM effects WHERE "offset" % 2 = 0`); n != batches {
		t.Errorf("%d of %d messages had an effect", n, batches)
	}
	if n := s.db.Int(t, `SELECT count(*) FROM effects`); n == 2*batches {
		t.Error("nothing was compacted")
	}
}

// Messages are larger than what is fetched at a time, and compressed.
func TestLargeAndCompressedMessages(t *testing.T) {
	s := newStage(t, 1)
	for n, compression := range []kafkago.Compression{kafkago.Gzip, kafkago.Snappy, kafkago.Lz4, kafkago.Zstd, 0} {
		a, b := s.record(2*n), s.record(2*n+1)
		a.Value = kafkago.NewBytes(bytes.Repeat([]byte{byte('a' + n)}, 300_000))
		response, err := s.client.Produce(t.Context(), &kafkago.ProduceRequest{
			Topic: s.topic, RequiredAcks: kafkago.RequireAll, Records: kafkago.NewRecordReader(a, b), Compression: compression,
		})
		if err != nil || response.Error != nil {
			t.Fatal(err, response)
		}
	}
	config := s.config(effect)
	config.FetchBytes = 1000
	c := start(t, config)
	s.awaitEffects(10)
	c.mustStop()
	s.checkEffects(10)
	if n := s.db.Int(t, `SELECT count(*) FROM effects WHERE length(payload) = 300000`); n != 5 {
		t.Errorf("%d large messages", n)
	}
}
