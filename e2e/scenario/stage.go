package scenario

import (
	"context"
	"crypto/md5" //nolint:gosec // a checksum among friends
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/outbox"
)

// SeedVariable repeats a run with the seed that a failed test printed.
const SeedVariable = "RELAY_TEST_SEED"

// Stage is what a scenario plays on: a database with an outbox and the tables
// of the truth, a broker's log, and the configuration of relays between them.
type Stage struct {
	Database *Database
	Log      Log
	// Config is that of the relays; Relay adds what is each one's own.
	Config Config
	// Table is the quoted name of the outbox.
	Table string
	// Repartitioned: the scenario gave topics more partitions.
	Repartitioned bool
	// Seed is what all randomness of the test comes from.
	Seed uint64

	t     testing.TB
	truth *truth
	// loads is how many workloads were started.
	loads  int
	relays int
	// processes is how many programs other than relays there are.
	processes int
}

// truth is what the database cannot know.
type truth struct {
	mu     sync.Mutex
	undone map[outbox.UUID]string
}

// truthSQL makes the tables of the workload: one with the truth about each row,
// written in the row's own transaction, and one of the aggregates whose lock
// makes the ids of a key commit in order.
const truthSQL = `
CREATE TABLE truth (
    message_id uuid PRIMARY KEY, id bigint NOT NULL, topic text NOT NULL, key text, digest bytea NOT NULL, delayed boolean NOT NULL DEFAULT false
);
CREATE TABLE aggregates (topic text, key text, sequence bigint NOT NULL, PRIMARY KEY (topic, key))`

// NewStage makes the outbox, by `relay migrate`, and the tables of the truth.
func NewStage(t testing.TB, database *Database, log Log, settings Settings) *Stage {
	t.Helper()
	s := &Stage{
		Database: database, Log: log, t: t, Seed: Seed(t), truth: &truth{undone: map[outbox.UUID]string{}},
		Config: Config{
			"database": Config{"url": database.URL},
			"sinks":    Config{"main": log.Sink()},
			"log":      Config{"level": "debug", "format": "text"},
		},
	}
	if joined, ok := log.(*JoinedLog); ok {
		s.Config = s.Config.With(joined.settings())
	}
	s.Config = s.Config.With(settings)
	s.Table = pgx.Identifier{get(s.Config, "outbox.schema", "public"), get(s.Config, "outbox.table", "outbox")}.Sanitize()
	migrator := NewRelay(t, "migrate", s.Config)
	if result := migrator.Command("migrate"); result.Code != 0 {
		t.Fatalf("relay migrate: %s", result)
	}
	database.Exec(t, truthSQL)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed: %s=%d", SeedVariable, s.Seed)
		}
	})
	return s
}

// NewKafkaStage is a stage on the shared PostgreSQL and Kafka.
func NewKafkaStage(t testing.TB, settings Settings) *Stage {
	t.Helper()
	return NewStage(t, NewDatabase(t), NewKafkaLog(t), settings)
}

// NewRabbitStage is a stage on the shared PostgreSQL and RabbitMQ.
func NewRabbitStage(t testing.TB, settings Settings) *Stage {
	t.Helper()
	return NewStage(t, NewDatabase(t), NewRabbitLog(t), settings)
}

// Seed is what RELAY_TEST_SEED says, or else a new one.
func Seed(t testing.TB) uint64 {
	t.Helper()
	given := os.Getenv(SeedVariable)
	if given == "" {
		return rand.Uint64()
	}
	seed, err := strconv.ParseUint(given, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", SeedVariable, err)
	}
	return seed
}

// Random returns a source of random numbers for the purpose with the number.
func (s *Stage) Random(purpose uint64) *rand.Rand {
	return rand.New(rand.NewPCG(s.Seed, purpose)) //nolint:gosec // repeatable is what is wanted
}

// Topic is the first of the log's topics.
func (s *Stage) Topic() string { return s.Log.Topics()[0] }

// Relay returns a relay of the stage that does not run yet.
func (s *Stage) Relay(settings Settings) *Relay {
	s.t.Helper()
	s.relays++
	return NewRelay(s.t, fmt.Sprintf("relay-%d", s.relays), s.Config.With(settings))
}

// Start starts a relay of the stage and waits until it is ready.
func (s *Stage) Start() *Relay {
	s.t.Helper()
	r := s.Relay(nil)
	r.Start()
	return r
}

// Digest is what the truth records of a payload.
func Digest(payload []byte) []byte {
	digest := md5.Sum(payload) //nolint:gosec // see above
	return digest[:]
}

// Insert commits one row by plain SQL, with its truth, and returns it. A nil
// key is null.
func (s *Stage) Insert(topic string, key *string, payload string) Row {
	s.t.Helper()
	row := Row{Topic: topic, Digest: Digest([]byte(payload))}
	if key != nil {
		row.Key, row.Keyed = *key, true
	}
	err := pgx.BeginFunc(s.t.Context(), s.Database.Pool, func(tx pgx.Tx) error {
		return s.InsertIn(s.t.Context(), tx, &row, []byte(payload))
	})
	if err != nil {
		s.t.Fatalf("insert: %v", err)
	}
	return row
}

// InsertIn inserts the row and its truth in the caller's transaction by plain
// SQL, and fills in the ids.
func (s *Stage) InsertIn(ctx context.Context, tx pgx.Tx, row *Row, payload []byte) error {
	var key *string
	if row.Keyed {
		key = &row.Key
	}
	return tx.QueryRow(ctx, `
WITH o AS (INSERT INTO `+s.Table+` (topic, key, type, payload) VALUES ($1, $2, 'Tested', $3) RETURNING id, message_id, topic, key),
     w AS (INSERT INTO truth (message_id, id, topic, key, digest) SELECT message_id, id, topic, key, $4 FROM o)
SELECT id, message_id FROM o`, row.Topic, key, payload, Digest(payload)).Scan(&row.ID, (*[16]byte)(&row.MessageID))
}

// Undo records that a message was never committed, or is no more, and why.
func (s *Stage) Undo(message outbox.UUID, why string) {
	s.truth.mu.Lock()
	defer s.truth.mu.Unlock()
	s.truth.undone[message] = why
}

// undone says of each message that was undone so far why.
func (s *Stage) undone() map[outbox.UUID]string {
	s.truth.mu.Lock()
	defer s.truth.mu.Unlock()
	return maps.Clone(s.truth.undone)
}

// Pending counts the rows that wait, those delayed into the future included.
func (s *Stage) Pending() (int, error) {
	var n int
	err := s.Database.Pool.QueryRow(s.t.Context(), `SELECT count(*) FROM `+s.Table+` WHERE published_at IS NULL`).Scan(&n)
	return n, err
}

// Drain waits until nothing is pending.
func (s *Stage) Drain(limit time.Duration) {
	s.t.Helper()
	Await(s.t, limit, "the outbox to drain", func() (bool, string) {
		n, err := s.Pending()
		if err != nil {
			return false, err.Error()
		}
		return n == 0, fmt.Sprintf("%d rows are pending", n)
	})
}

// Records is the log so far. A broker that comes back gets some time.
func (s *Stage) Records() (records []Record) {
	s.t.Helper()
	Await(s.t, 30*time.Second, "an answer of the broker", func() (bool, string) {
		ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
		defer cancel()
		var err error
		records, err = s.Log.Records(ctx)
		return err == nil, fmt.Sprint(err)
	})
	return records
}

// AwaitRecord waits until the broker has the message, and returns its record.
func (s *Stage) AwaitRecord(message outbox.UUID, limit time.Duration) (found Record) {
	s.t.Helper()
	Await(s.t, limit, "message "+message.String()+" in the broker", func() (bool, string) {
		records := s.Records()
		i := slices.IndexFunc(records, func(r Record) bool { return r.MessageID == message })
		if i >= 0 {
			found = records[i]
		}
		return i >= 0, fmt.Sprintf("it is not among %d records", len(records))
	})
	return found
}

// Holds reports whether the broker has the message now.
func (s *Stage) Holds(message outbox.UUID) bool {
	s.t.Helper()
	return slices.ContainsFunc(s.Records(), func(r Record) bool { return r.MessageID == message })
}

// Verify checks L, P, O, C and D, with at most so many duplicates, on the
// drained outbox, and returns how many duplicates there were.
func (s *Stage) Verify(maxDuplicates int) int {
	s.t.Helper()
	committed, err := s.committed()
	if err != nil {
		s.t.Fatalf("read the truth: %v", err)
	}
	undone := s.undone()
	records := s.Records()
	findings := Check{
		Committed: committed, Undone: undone, Records: records,
		Order: Order(get(s.Config, "outbox.ordering", string(OrderKey))), Repartitioned: s.Repartitioned, MaxDuplicates: maxDuplicates,
	}.Run()
	s.t.Logf("committed %d, undone %d, in the broker %d, duplicates %d", len(committed), len(undone), len(records), findings.Duplicates)
	if len(committed) == 0 {
		s.t.Error("nothing was committed, so nothing was tested")
	}
	if len(findings.Violations) > 0 {
		s.t.Errorf("%d violations:\n%s", len(findings.Violations), findings)
	}
	return findings.Duplicates
}

func (s *Stage) committed() ([]Row, error) {
	rows, err := s.Database.Pool.Query(s.t.Context(), `SELECT id, message_id, topic, coalesce(key, ''), key IS NOT NULL, digest, delayed FROM truth ORDER BY id`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (r Row, err error) {
		return r, row.Scan(&r.ID, (*[16]byte)(&r.MessageID), &r.Topic, &r.Key, &r.Keyed, &r.Digest, &r.Delayed)
	})
}
