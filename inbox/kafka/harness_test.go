package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/kafka"
	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/migrations"
)

// patience is how long a condition may take to come true on a busy machine.
const patience = 2 * time.Minute

// stage is a topic, a group and a database with effects.
type stage struct {
	t       testing.TB
	brokers []string
	topic   string
	group   string
	client  *kafkago.Client
	db      *pgtest.Database
}

func newStage(t testing.TB, partitions int, settings ...kafkago.ConfigEntry) *stage {
	t.Helper()
	servers := os.Getenv("RELAY_TEST_KAFKA_BROKERS")
	if servers == "" {
		t.Skip("needs RELAY_TEST_KAFKA_BROKERS; `make test` provides it")
	}
	s := &stage{t: t, brokers: strings.Split(servers, ","), db: newInbox(t)}
	transport := &kafkago.Transport{MetadataTTL: 100 * time.Millisecond}
	t.Cleanup(transport.CloseIdleConnections)
	s.client = &kafkago.Client{Addr: kafkago.TCP(s.brokers...), Timeout: 30 * time.Second, Transport: transport}
	s.topic = s.newTopic(partitions, settings...)
	s.group = "group-" + s.topic
	return s
}

// newInbox is a database with an inbox and a table for effects.
func newInbox(t testing.TB) *pgtest.Database {
	t.Helper()
	db := pgtest.New(t)
	migrate(t, db, "inbox")
	db.Exec(t, `CREATE TABLE effects (n bigint GENERATED ALWAYS AS IDENTITY, message_id text NOT NULL, partition int NOT NULL, "offset" bigint NOT NULL, payload text)`)
	return db
}

func (s *stage) migrate(table string) { migrate(s.t, s.db, table) }

func migrate(t testing.TB, db *pgtest.Database, table string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := (migrations.Target{Schema: "public", Table: table, Set: migrations.Inbox}).Apply(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
}

func (s *stage) newTopic(partitions int, settings ...kafkago.ConfigEntry) string {
	s.t.Helper()
	name := fmt.Sprintf("inbox-test-%08x", rand.Uint32())
	await(s.t, "the topic is made", func() bool {
		response, err := s.client.CreateTopics(s.t.Context(), &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{
			Topic: name, NumPartitions: partitions, ReplicationFactor: 1, ConfigEntries: settings,
		}}})
		if err == nil {
			err = response.Errors[name]
		}
		if errors.Is(err, kafkago.BrokerNotAvailable) { // the controller misses it for a moment
			return false
		}
		if err != nil {
			s.t.Fatal(err)
		}
		return true
	})
	await(s.t, "the topic has leaders", func() bool {
		metadata, err := s.client.Metadata(s.t.Context(), &kafkago.MetadataRequest{Topics: []string{name}})
		return err == nil && len(metadata.Topics) == 1 && metadata.Topics[0].Error == nil && len(metadata.Topics[0].Partitions) == partitions &&
			!slices.ContainsFunc(metadata.Topics[0].Partitions, func(p kafkago.Partition) bool { return p.Error != nil })
	})
	return name
}

// newID is the id of a message that test and number name.
func (s *stage) newID(n int) inbox.ID { return inbox.IDFrom(inbox.ID{1}, fmt.Sprint(s.topic, n)) }

func (s *stage) record(n int, headers ...kafkago.Header) kafkago.Record {
	return kafkago.Record{
		Key: kafkago.NewBytes(fmt.Appendf(nil, "key-%d", n%7)), Value: kafkago.NewBytes(fmt.Append(nil, n)),
		Headers: append([]kafkago.Header{
			{Key: "message-id", Value: []byte(s.newID(n).String())},
			{Key: "message-type", Value: []byte("Tested")},
			{Key: "message-sequence", Value: fmt.Append(nil, n+1)},
		}, headers...),
	}
}

// produce writes records to a partition.
func (s *stage) produce(partition int, records ...kafkago.Record) {
	s.t.Helper()
	s.produceCompressed(partition, 0, records...)
}

func (s *stage) produceCompressed(partition int, codec kafkago.Compression, records ...kafkago.Record) {
	s.t.Helper()
	await(s.t, "the partition's leader knows that it is", func() bool {
		for _, r := range records {
			rewind(s.t, r.Key)
			rewind(s.t, r.Value)
		}
		response, err := s.client.Produce(s.t.Context(), &kafkago.ProduceRequest{
			Topic: s.topic, Partition: partition, RequiredAcks: kafkago.RequireAll, Records: kafkago.NewRecordReader(records...), Compression: codec,
		})
		if err == nil {
			err = response.Error
		}
		if err != nil && !errors.Is(err, kafkago.NotLeaderForPartition) && !errors.Is(err, kafkago.UnknownTopicOrPartition) {
			s.t.Fatal(err)
		}
		return err == nil
	})
}

// rewind lets a record be written again: kafka-go reads it.
func rewind(t testing.TB, b kafkago.Bytes) {
	t.Helper()
	if b == nil {
		return
	}
	if _, err := b.(io.Seeker).Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
}

// publish writes messages numbered from first to last-1, spread over
// partitions.
func (s *stage) publish(first, last, partitions int) {
	s.t.Helper()
	byPartition := make([][]kafkago.Record, partitions)
	for n := first; n < last; n++ {
		byPartition[n%partitions] = append(byPartition[n%partitions], s.record(n))
	}
	for partition, records := range byPartition {
		for chunk := range slices.Chunk(records, 50) {
			s.produce(partition, chunk...)
		}
	}
}

// publishKeys writes as many messages, evenly over partitions and keys.
func (s *stage) publishKeys(count, partitions, keys int) {
	s.t.Helper()
	for partition := range partitions {
		records := make([]kafkago.Record, 0, 1000)
		for n := partition; n < count; n += partitions {
			r := s.record(n)
			r.Key = kafkago.NewBytes(fmt.Append(nil, n/partitions%keys))
			if records = append(records, r); len(records) == cap(records) || n+partitions >= count {
				s.produce(partition, records...)
				records = records[:0]
			}
		}
	}
}

// config is a consumer's, with times that suit a test.
func (s *stage) config(handler inbox.Handler) kafka.Config {
	return kafka.Config{
		Brokers: s.brokers, Group: s.group, Topics: []string{s.topic},
		Inbox: &inbox.Inbox{Consumer: "tests"}, DB: s.db.Pool, Handler: handler,
		Backoff:           kafka.Backoff{Initial: 10 * time.Millisecond, Max: 200 * time.Millisecond},
		HeartbeatInterval: 200 * time.Millisecond, SessionTimeout: 10 * time.Second,
		CommitInterval: 50 * time.Millisecond, FetchWait: 200 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(testWriter{s.t}, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

// effect records that a message was processed.
func effect(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	_, err := tx.Exec(ctx, `INSERT INTO effects (message_id, partition, "offset", payload) VALUES ($1, $2, $3, $4)`,
		m.ID.String(), m.Source.Partition, m.Source.Offset, string(m.Payload))
	return err
}

// consumer is one that runs.
type consumer struct {
	*kafka.Consumer
	t      testing.TB
	cancel context.CancelFunc
	done   chan error
	once   sync.Once
	err    error
}

func start(t testing.TB, config kafka.Config) *consumer {
	t.Helper()
	made, err := kafka.New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &consumer{Consumer: made, t: t, cancel: cancel, done: make(chan error, 1)}
	go func() { c.done <- made.Run(ctx) }()
	t.Cleanup(func() { _ = c.stop() })
	return c
}

// stop ends the consumer and returns what Run did.
func (c *consumer) stop() error {
	c.once.Do(func() {
		c.cancel()
		select {
		case c.err = <-c.done:
		case <-time.After(patience):
			c.err = errors.New("Run did not return\n" + stacks())
		}
	})
	return c.err
}

func (c *consumer) mustStop() {
	c.t.Helper()
	if err := c.stop(); err != nil {
		c.t.Fatal(err)
	}
}

func stacks() string {
	buffer := make([]byte, 1<<20)
	return string(buffer[:runtime.Stack(buffer, true)])
}

// await polls until a condition is true.
func await(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *stage) awaitEffects(n int) {
	s.t.Helper()
	await(s.t, fmt.Sprintf("%d effects", n), func() bool { return s.db.Int(s.t, `SELECT count(*) FROM effects`) >= int64(n) })
}

// checkEffects verifies that the messages up to n had one effect each, those of
// a partition in the order of their offsets.
func (s *stage) checkEffects(n int) {
	s.t.Helper()
	if got := s.db.Int(s.t, `SELECT count(DISTINCT message_id) FROM effects`); got != int64(n) {
		s.t.Errorf("%d of %d messages had an effect", got, n)
	}
	if got := s.db.Int(s.t, `SELECT count(*) FROM (SELECT FROM effects GROUP BY message_id HAVING count(*) > 1) x`); got != 0 {
		s.t.Errorf("%d messages had more than one effect", got)
	}
	if got := s.db.Int(s.t, `SELECT count(*) FROM (SELECT "offset" < max("offset") OVER (PARTITION BY partition ORDER BY n) AS late FROM effects) x WHERE late`); got != 0 {
		s.t.Errorf("%d effects came after a later one of their partition", got)
	}
}

// committed are the group's offsets, -1 where there is none.
func (s *stage) committed(partitions int) []int64 {
	s.t.Helper()
	ids := make([]int, partitions)
	for i := range ids {
		ids[i] = i
	}
	response, err := s.client.OffsetFetch(s.t.Context(), &kafkago.OffsetFetchRequest{GroupID: s.group, Topics: map[string][]int{s.topic: ids}})
	if err != nil {
		s.t.Fatal(err)
	}
	offsets := make([]int64, partitions)
	for _, p := range response.Topics[s.topic] {
		if p.Error != nil {
			s.t.Fatal(p.Error)
		}
		offsets[p.Partition] = p.CommittedOffset
	}
	return offsets
}

// read returns the records of a topic's partition 0.
func (s *stage) read(topic string, n int) (records []kafkago.Message) {
	s.t.Helper()
	reader := kafkago.NewReader(kafkago.ReaderConfig{Brokers: s.brokers, Topic: topic, MaxWait: 200 * time.Millisecond})
	defer func() { _ = reader.Close() }()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	for range n {
		m, err := reader.ReadMessage(ctx)
		if err != nil {
			s.t.Fatalf("after %d of %d records of %s: %v", len(records), n, topic, err)
		}
		records = append(records, m)
	}
	return records
}

// checkGoroutines verifies that consumers left none behind.
func checkGoroutines(t testing.TB) {
	t.Helper()
	await(t, "all goroutines of the package have ended", func() bool {
		return !strings.Contains(stacks(), "/inbox/kafka.(")
	})
}

func newPool(t testing.TB, settings *pgxpool.Config) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.NewWithConfig(t.Context(), settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func newLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
