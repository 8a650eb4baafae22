package groups

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/kafka"
	"github.com/outboxrelay/relay/migrations"
)

func TestMain(m *testing.M) { os.Exit(scenario.Main(m)) }

// patience is how long a condition may take to come true on a busy machine.
const patience = time.Minute

// stage is a Kafka of its own, with a topic, and a database for the effects.
type stage struct {
	t      *testing.T
	kafka  *servers.Kafka
	client *kafkago.Client
	db     *scenario.Database
	topic  string
}

func newStage(t *testing.T, options servers.KafkaOptions, partitions int) *stage {
	t.Helper()
	broker, err := servers.StartKafka(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, broker)
	s := newStageOn(t, broker.Brokers())
	s.kafka = broker
	if err := broker.CreateTopic(t.Context(), s.topic, partitions, nil); err != nil {
		t.Fatal(err)
	}
	return s
}

// newStageOn is for brokers that run; its topic is not made.
func newStageOn(t *testing.T, brokers []string) *stage {
	t.Helper()
	transport := &kafkago.Transport{MetadataTTL: 100 * time.Millisecond}
	t.Cleanup(transport.CloseIdleConnections)
	s := &stage{
		t: t, db: scenario.NewDatabase(t), topic: "orders",
		client: &kafkago.Client{Addr: kafkago.TCP(brokers...), Timeout: 30 * time.Second, Transport: transport},
	}
	s.migrate()
	return s
}

// migrate makes the tables.
func (s *stage) migrate() {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.db.URL)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := (migrations.Target{Schema: "public", Table: "inbox", Set: migrations.Inbox}).Apply(s.t.Context(), conn, nil); err != nil {
		s.t.Fatal(err)
	}
	s.db.Exec(s.t, `CREATE TABLE effects (n bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL DEFAULT clock_timestamp(), message_id text NOT NULL, partition int NOT NULL, "offset" bigint NOT NULL)`)
}

func id(n int) string { return fmt.Sprintf("00000000-0000-7000-8000-%012d", n) }

// publish writes messages numbered from first to last-1, spread over partitions.
// What a broker that is about to lead refuses is written again.
func (s *stage) publish(first, last, partitions int) {
	s.t.Helper()
	for partition := range partitions {
		await(s.t, "a partition takes messages", func() bool {
			var records []kafkago.Record
			for n := first; n < last; n++ {
				if n%partitions == partition {
					records = append(records, kafkago.Record{
						Value: kafkago.NewBytes(fmt.Append(nil, n)), Headers: []kafkago.Header{{Key: "message-id", Value: []byte(id(n))}},
					})
				}
			}
			if len(records) == 0 {
				return true
			}
			response, err := s.client.Produce(s.t.Context(), &kafkago.ProduceRequest{
				Topic: s.topic, Partition: partition, RequiredAcks: kafkago.RequireAll, Records: kafkago.NewRecordReader(records...),
			})
			return err == nil && response.Error == nil
		})
	}
}

func effect(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	_, err := tx.Exec(ctx, `INSERT INTO effects (message_id, partition, "offset") VALUES ($1, $2, $3)`, m.ID.String(), m.Source.Partition, m.Source.Offset)
	return err
}

func (s *stage) config(log *log) kafka.Config {
	var brokers []string
	if s.kafka != nil {
		brokers = s.kafka.Brokers()
	}
	return kafka.Config{
		Brokers: brokers,
		Group:   "shipping", Topics: []string{s.topic},
		Inbox: &inbox.Inbox{Consumer: "shipping", Retention: 30 * 24 * time.Hour}, DB: s.db.Pool, Handler: effect,
		Backoff:           kafka.Backoff{Initial: 10 * time.Millisecond, Max: 200 * time.Millisecond},
		HeartbeatInterval: 200 * time.Millisecond, SessionTimeout: 10 * time.Second,
		CommitInterval: 50 * time.Millisecond, FetchWait: 200 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	}
}

// checkOnce demands one effect of each of n messages.
func (s *stage) checkOnce(n int) {
	s.t.Helper()
	if got := s.count(`SELECT count(DISTINCT message_id) FROM effects`); got != n {
		s.t.Errorf("%d of %d messages had an effect", got, n)
	}
	if got := s.count(`SELECT count(*) FROM effects`); got != n {
		s.t.Errorf("%d messages had %d effects", n, got)
	}
}

func (s *stage) effects() int {
	return s.count(`SELECT count(*) FROM effects`)
}

// log keeps what is written, and shows it when the test fails.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func newLog(t *testing.T) *log {
	l := &log{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.String())
		}
	})
	return l
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// lines are those with a text.
func (l *log) lines(text string) []string {
	return slices.DeleteFunc(strings.Split(l.String(), "\n"), func(line string) bool { return !strings.Contains(line, text) })
}

// run starts a consumer; stop ends it.
func run(t *testing.T, config kafka.Config) (consumer *kafka.Consumer, stop func()) {
	t.Helper()
	consumer, err := kafka.New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- consumer.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			var err error
			select {
			case err = <-done:
			case <-time.After(patience):
				err = errors.New("Run did not return")
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return consumer, stop
}

func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

func (s *stage) count(query string) (n int) {
	s.t.Helper()
	if err := s.db.Pool.QueryRow(s.t.Context(), query).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}
