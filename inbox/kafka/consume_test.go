package kafka_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	kafkago "github.com/segmentio/kafka-go"
	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/inbox"
)

func TestEveryMessageOnceInOrder(t *testing.T) {
	s := newStage(t, 4)
	s.publish(0, 300, 4)
	c := start(t, s.config(effect))
	s.publish(300, 400, 4)
	s.awaitEffects(400)
	c.mustStop()
	s.checkEffects(400)
	if got := s.committed(4); !slices.Equal(got, []int64{100, 100, 100, 100}) {
		t.Errorf("committed %v", got)
	}
	if stats := c.Stats(); stats.Processed != 400 || stats.Duplicates != 0 || stats.Failures != 0 || stats.Partitions != 0 {
		t.Errorf("stats %+v", stats)
	}
	checkGoroutines(t)
}

func TestBatches(t *testing.T) {
	s := newStage(t, 3)
	s.publish(0, 300, 3)
	var largest atomic.Int64
	config := s.config(nil)
	config.BatchSize = 20
	config.BatchHandler = func(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
		largest.Store(max(largest.Load(), int64(len(fresh))))
		for _, m := range fresh {
			if m.Source.Partition != fresh[0].Source.Partition {
				t.Errorf("a batch of partitions %d and %d", fresh[0].Source.Partition, m.Source.Partition)
			}
			if err := effect(ctx, tx, m); err != nil {
				return err
			}
		}
		return nil
	}
	c := start(t, config)
	s.awaitEffects(300)
	c.mustStop()
	s.checkEffects(300)
	if largest.Load() != 20 {
		t.Errorf("the largest batch had %d messages", largest.Load())
	}
}

// A clean stop leaves nothing to be delivered again.
func TestStopMakesNoDuplicates(t *testing.T) {
	s := newStage(t, 3)
	const total = 600
	s.publish(0, total, 3)
	for round := 1; ; round++ {
		c := start(t, s.config(effect))
		s.awaitEffects(min(round*100, total))
		c.mustStop()
		if n := c.Stats().Duplicates; n != 0 {
			t.Fatalf("round %d: %d duplicates", round, n)
		}
		var sum int64
		for _, offset := range s.committed(3) {
			sum += max(0, offset)
		}
		if effects := s.db.Int(t, `SELECT count(*) FROM effects`); sum != effects {
			t.Fatalf("round %d: %d offsets are committed for %d effects", round, sum, effects)
		} else if effects == total {
			break
		}
	}
	s.checkEffects(total)
	checkGoroutines(t)
}

func TestHandlerSeesTheMessage(t *testing.T) {
	s := newStage(t, 1)
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	s.produce(0, s.record(0, kafkago.Header{Key: "traceparent", Value: []byte(parent)}, kafkago.Header{Key: "tenant", Value: []byte("a")}),
		kafkago.Record{Headers: []kafkago.Header{{Key: "message-id", Value: []byte(s.newID(1).String())}}})
	got := make(chan inbox.Message, 2)
	traces := make(chan string, 2)
	c := start(t, s.config(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		got <- m
		traces <- trace.SpanContextFromContext(ctx).TraceID().String()
		return nil
	}))
	m := <-got
	if m.Topic != s.topic || string(m.Key) != "key-0" || m.Type != "Tested" || string(m.Payload) != "0" || m.Sequence != 1 ||
		m.Headers["tenant"] != "a" || m.Source != inbox.KafkaSource(s.topic, 0, 0) || m.Time.IsZero() || m.ReceivedAt.IsZero() {
		t.Errorf("the handler got %+v", m)
	}
	if id := <-traces; id != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("trace %s", id)
	}
	if m := <-got; m.Key != nil || m.Payload != nil {
		t.Errorf("a tombstone without a key came as %+v", m)
	}
	c.mustStop()
}

// A message that fails holds back its partition, and no other one.
func TestOtherPartitionsGoOn(t *testing.T) {
	s := newStage(t, 2)
	s.publish(0, 40, 2)
	var healed atomic.Bool
	config := s.config(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if m.Source.Partition == 0 && m.Source.Offset == 5 && !healed.Load() {
			return fmt.Errorf("not yet")
		}
		return effect(ctx, tx, m)
	})
	config.MaxAttempts = 1 << 30
	c := start(t, config)
	await(t, "partition 1 is done", func() bool { return s.db.Int(t, `SELECT count(*) FROM effects WHERE partition = 1`) == 20 })
	await(t, "partition 0 is held at its failing message", func() bool {
		return s.db.Int(t, `SELECT count(*) FROM effects WHERE partition = 0`) == 5 && s.committed(2)[0] == 5 && c.Stats().Failures > 1
	})
	healed.Store(true)
	s.awaitEffects(40)
	c.mustStop()
	s.checkEffects(40)
}

func TestStartOffsetLastIsRemembered(t *testing.T) {
	s := newStage(t, 2)
	s.publish(0, 10, 2)
	config := s.config(effect)
	config.StartOffset = kafkago.LastOffset
	c := start(t, config)
	await(t, "the start is committed", func() bool { return slices.Equal(s.committed(2), []int64{5, 5}) })
	c.mustStop()
	// Nobody listens now; the successor must not miss these.
	s.publish(10, 20, 2)
	c = start(t, config)
	s.awaitEffects(10)
	c.mustStop()
	s.checkEffects(10)
}

func TestTopicThatComesLater(t *testing.T) {
	s := newStage(t, 1)
	second := s.topic + "-later"
	config := s.config(effect)
	config.Topics = []string{s.topic, second}
	c := start(t, config)
	s.publish(0, 1, 1)
	s.awaitEffects(1)
	s.topic = second
	response, err := s.client.CreateTopics(t.Context(), &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{Topic: second, NumPartitions: 1, ReplicationFactor: 1}}})
	if err != nil || response.Errors[second] != nil {
		t.Fatal(err, response)
	}
	await(t, "the new topic takes messages", func() bool {
		r, err := s.client.Produce(t.Context(), &kafkago.ProduceRequest{Topic: second, RequiredAcks: kafkago.RequireAll, Records: kafkago.NewRecordReader(s.record(0))})
		return err == nil && r.Error == nil
	})
	s.awaitEffects(2)
	c.mustStop()
}

func TestSecondRunIsRefused(t *testing.T) {
	s := newStage(t, 1)
	c := start(t, s.config(effect))
	await(t, "it runs", func() bool { return c.Stats().Partitions == 1 })
	if err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "running already") {
		t.Errorf("got %v", err)
	}
}
