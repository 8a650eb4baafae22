package kafka_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/kafka"
	"github.com/outboxrelay/relay/inbox/parked"
)

// failing is a handler that fails for one message, after its effect.
func failing(offset int64, fail func() error) inbox.Handler {
	return func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if err := effect(ctx, tx, m); err != nil {
			return err
		}
		if m.Source.Offset == offset {
			return fail()
		}
		return nil
	}
}

func header(m kafkago.Message, name string) string {
	for _, h := range m.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

func TestPoisonIsDeadLettered(t *testing.T) {
	s := newStage(t, 1)
	dead := s.newTopic(1)
	for n := range 10 {
		s.produce(0, s.record(n, kafkago.Header{Key: "binary", Value: []byte{0, 255}}, kafkago.Header{Key: "twice", Value: []byte("1")}, kafkago.Header{Key: "twice", Value: []byte("2")},
			kafkago.Header{Key: kafka.HeaderError, Value: []byte("of an earlier consumer")}))
	}
	config := s.config(failing(4, func() error { return errors.New("no such customer") }))
	config.MaxAttempts = 3
	config.OnPoison = kafka.DeadLetter{Topic: dead}
	c := start(t, config)
	s.awaitEffects(9)
	c.mustStop()
	m := s.read(dead, 1)[0]
	if string(m.Key) != "key-4" || string(m.Value) != "4" || header(m, "message-id") != s.newID(4).String() || header(m, "binary") != "\x00\xff" {
		t.Errorf("the dead letter is %+v", m)
	}
	if header(m, kafka.HeaderError) != "no such customer" || header(m, kafka.HeaderAttempts) != "3" || header(m, kafka.HeaderConsumer) != "tests" ||
		header(m, kafka.HeaderSource) != s.topic+"-0@4" {
		t.Errorf("the dead letter's headers are %q", m.Headers)
	}
	if n := len(m.Headers); n != 3+1+2+4 {
		t.Errorf("the dead letter has %d headers: %q", n, m.Headers)
	}
	if stats := c.Stats(); stats.Failures != 3 || stats.Poisoned != 1 || stats.Processed != 9 {
		t.Errorf("stats %+v", stats)
	}
	if got := s.committed(1); got[0] != 10 {
		t.Errorf("committed %v", got)
	}
	if n := s.db.Int(t, `SELECT count(*) FROM inbox`); n != 9 {
		t.Errorf("%d messages are recorded", n)
	}
}

// Without the topic for dead letters nothing is lost: the partition waits.
func TestMissingDeadLetterTopicHoldsThePartition(t *testing.T) {
	s := newStage(t, 1)
	s.publish(0, 10, 1)
	dead := s.topic + "-dead"
	config := s.config(failing(4, func() error { return errors.New("broken") }))
	config.MaxAttempts = 1
	config.OnPoison = kafka.DeadLetter{Topic: dead}
	log := &syncBuffer{}
	config.Logger = newLogger(log)
	c := start(t, config)
	await(t, "the log says why it waits", func() bool {
		return strings.Contains(log.String(), "could not be put aside") && strings.Contains(log.String(), "create it")
	})
	if got := s.committed(1); got[0] > 4 {
		t.Fatalf("committed %v past the message that is nowhere", got)
	}
	response, err := s.client.CreateTopics(t.Context(), &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{Topic: dead, NumPartitions: 1, ReplicationFactor: 1}}})
	if err != nil || response.Errors[dead] != nil {
		t.Fatal(err, response)
	}
	s.awaitEffects(9)
	c.mustStop()
	s.read(dead, 1)
}

type syncBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

func TestPoisonIsParked(t *testing.T) {
	s := newStage(t, 1)
	s.publish(0, 10, 1)
	config := s.config(failing(4, func() error { return errors.New("no such customer") }))
	config.MaxAttempts = 2
	c := start(t, config)
	s.awaitEffects(9)
	c.mustStop()
	lot := parked.Lot{Inbox: config.Inbox}
	messages, err := lot.List(t.Context(), s.db.Pool, parked.Filter{})
	if err != nil || len(messages) != 1 {
		t.Fatalf("parked: %+v, %v", messages, err)
	}
	m := messages[0]
	if m.ID != s.newID(4) || m.Source != inbox.KafkaSource(s.topic, 0, 4) || m.Attempts != 2 || m.Error != "no such customer" || m.Headers["message-type"] != "Tested" {
		t.Errorf("parked %+v", m)
	}
	if result, err := lot.Retry(t.Context(), s.db.Pool, m.Number, effect); err != nil || result != inbox.Processed {
		t.Fatal(result, err)
	}
	if n := s.db.Int(t, `SELECT count(DISTINCT message_id) FROM effects`); n != 10 {
		t.Errorf("%d effects", n)
	}
}

// The neighbours of a bad message in a batch are processed, in order.
func TestPoisonInABatch(t *testing.T) {
	s := newStage(t, 1)
	s.publish(0, 60, 1)
	config := s.config(nil)
	config.BatchSize = 25
	config.MaxAttempts = 2
	config.BatchHandler = func(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
		for _, m := range fresh {
			if err := failing(30, func() error { return errors.New("broken") })(ctx, tx, m); err != nil {
				return err
			}
		}
		return nil
	}
	c := start(t, config)
	s.awaitEffects(59)
	c.mustStop()
	s.checkEffects(59)
	if n := s.db.Int(t, `SELECT count(*) FROM inbox_parked WHERE source_offset = 30 AND attempts = 2`); n != 1 {
		t.Errorf("%d messages are parked", n)
	}
}

func TestPanicIsAFailure(t *testing.T) {
	s := newStage(t, 1)
	s.publish(0, 10, 1)
	log := &syncBuffer{}
	config := s.config(failing(4, func() error { panic("no such customer") }))
	config.MaxAttempts = 2
	config.Logger = newLogger(log)
	c := start(t, config)
	s.awaitEffects(9)
	c.mustStop()
	s.checkEffects(9)
	if stats := c.Stats(); stats.Panics != 2 || stats.Poisoned != 1 {
		t.Errorf("stats %+v", stats)
	}
	if !strings.Contains(log.String(), "poison_test.go") {
		t.Errorf("the log has no stack of the panic:\n%s", log)
	}
	if n := s.db.Int(t, `SELECT count(*) FROM inbox_parked WHERE error = 'the handler panicked: no such customer'`); n != 1 {
		t.Errorf("%d messages are parked", n)
	}
}

func TestMessageWithoutID(t *testing.T) {
	for _, batches := range []bool{false, true} {
		t.Run(fmt.Sprintf("batches=%v", batches), func(t *testing.T) {
			s := newStage(t, 1)
			nameless := kafkago.Record{Value: kafkago.NewBytes([]byte("nameless"))}
			s.produce(0, s.record(0), s.record(1), nameless, s.record(2))
			config := s.config(effect)
			if batches {
				config.Handler = nil
				config.BatchHandler = func(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
					for _, m := range fresh {
						if err := effect(ctx, tx, m); err != nil {
							return err
						}
					}
					return nil
				}
			}
			c := start(t, config)
			s.awaitEffects(3)
			c.mustStop()
			if stats := c.Stats(); stats.Poisoned != 1 || stats.Failures != 0 {
				t.Errorf("stats %+v", stats)
			}
			if n := s.db.Int(t, `SELECT count(*) FROM inbox_parked WHERE message_id IS NULL AND source_offset = 2 AND attempts = 0 AND error LIKE '%no id%'`); n != 1 {
				t.Errorf("%d messages are parked", n)
			}
		})
	}
}

func TestIDOfIdentifies(t *testing.T) {
	s := newStage(t, 1)
	s.produce(0, kafkago.Record{Value: kafkago.NewBytes([]byte("a"))}, kafkago.Record{Value: kafkago.NewBytes([]byte("b"))},
		kafkago.Record{Value: kafkago.NewBytes([]byte("a"))}, kafkago.Record{Value: kafkago.NewBytes([]byte("bang"))}, kafkago.Record{Value: kafkago.NewBytes([]byte("c"))})
	config := s.config(effect)
	config.Inbox.IDOf = func(m inbox.Message) (inbox.ID, error) {
		if string(m.Payload) == "bang" {
			panic("what is this?")
		}
		return inbox.IDFrom(inbox.ID{7}, string(m.Payload)), nil
	}
	c := start(t, config)
	s.awaitEffects(3)
	c.mustStop()
	if stats := c.Stats(); stats.Processed != 3 || stats.Duplicates != 1 || stats.Poisoned != 1 {
		t.Errorf("stats %+v", stats)
	}
}

func TestSlowHandlerFails(t *testing.T) {
	s := newStage(t, 1)
	s.publish(0, 5, 1)
	config := s.config(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if m.Source.Offset == 2 {
			if _, err := tx.Exec(ctx, `SELECT pg_sleep(600)`); err != nil {
				return err
			}
		}
		return effect(ctx, tx, m)
	})
	config.HandlerTimeout = 3 * time.Second
	config.MaxAttempts = 2
	c := start(t, config)
	s.awaitEffects(4)
	c.mustStop()
	s.checkEffects(4)
	if n := s.db.Int(t, `SELECT count(*) FROM inbox_parked WHERE source_offset = 2 AND attempts = 2 AND error LIKE 'HandlerTimeout is over%'`); n != 1 {
		t.Errorf("%d messages are parked", n)
	}
}

// A database that cannot work is no message's fault.
func TestOutageIsNotCounted(t *testing.T) {
	s := newStage(t, 1)
	s.publish(0, 20, 1)
	var killed, conflicts atomic.Int64
	config := s.config(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if err := effect(ctx, tx, m); err != nil {
			return err
		}
		switch {
		case m.Source.Offset == 5 && killed.Add(1) <= 8:
			_, err := tx.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
			return err
		case m.Source.Offset == 10 && conflicts.Add(1) <= 20:
			_, err := tx.Exec(ctx, `DO $$ BEGIN RAISE EXCEPTION SQLSTATE '40001'; END $$`)
			return err
		}
		return nil
	})
	config.MaxAttempts = 1
	c := start(t, config)
	s.awaitEffects(20)
	c.mustStop()
	s.checkEffects(20)
	if stats := c.Stats(); stats.Failures != 0 || stats.Poisoned != 0 {
		t.Errorf("stats %+v", stats)
	}
	if n := s.db.Int(t, `SELECT count(*) FROM inbox_parked`); n != 0 {
		t.Errorf("%d messages are parked", n)
	}
}

// What every message would fail of makes poison of none.
func TestMissingInboxHoldsTheMessages(t *testing.T) {
	s := newStage(t, 1)
	s.publish(0, 5, 1)
	log := &syncBuffer{}
	config := s.config(effect)
	config.MaxAttempts = 1
	config.Inbox.Table = "elsewhere"
	config.Logger = newLogger(log)
	c := start(t, config)
	await(t, "the log has the remedy", func() bool { return strings.Contains(log.String(), "relay migrate --only inbox") })
	s.migrate("elsewhere")
	s.awaitEffects(5)
	c.mustStop()
	if stats := c.Stats(); stats.Failures != 0 || stats.Poisoned != 0 {
		t.Errorf("stats %+v", stats)
	}
}

// A full pool makes partitions wait, and fails no message.
func TestMorePartitionsThanConnections(t *testing.T) {
	s := newStage(t, 8)
	s.publish(0, 80, 8)
	settings := s.db.Pool.Config()
	settings.MaxConns = 2
	pool := newPool(t, settings)
	config := s.config(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if _, err := tx.Exec(ctx, `SELECT pg_sleep(0.02)`); err != nil {
			return err
		}
		return effect(ctx, tx, m)
	})
	config.DB = pool
	config.MaxAttempts = 1
	c := start(t, config)
	s.awaitEffects(80)
	c.mustStop()
	s.checkEffects(80)
	if stats := c.Stats(); stats.Failures != 0 {
		t.Errorf("stats %+v", stats)
	}
}

func TestBadConfig(t *testing.T) {
	_, err := kafka.New(kafka.Config{
		Brokers: []string{"nonsense"}, Topics: []string{"orders", ""}, HandlerTimeout: -1, SessionTimeout: time.Second, DB: &pgx.Conn{},
		OnPoison: kafka.DeadLetter{Topic: "orders"},
	})
	for _, want := range []string{"Brokers[0]", "Group", "Topics: one", "Inbox: missing", "DB: *pgx.Conn", "Handler, BatchHandler", "HandlerTimeout", "HeartbeatInterval", "come back for ever"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	_, err = kafka.New(kafka.Config{
		Brokers: []string{"localhost:9092"}, Group: "g", Topics: []string{"orders"}, Inbox: &inbox.Inbox{Consumer: "c"}, DB: fakeBeginner{}, Handler: effect,
	})
	if err != nil {
		t.Errorf("the least configuration: %v", err)
	}
}

type fakeBeginner struct{}

func (fakeBeginner) Begin(context.Context) (pgx.Tx, error) { return nil, errors.ErrUnsupported }
