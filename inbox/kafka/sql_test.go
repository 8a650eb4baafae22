package kafka_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/kafka"
)

func openSQL(t *testing.T, url string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(4)
	return db
}

func sqlEffect(ctx context.Context, tx *sql.Tx, m inbox.Message) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO effects (message_id, partition, "offset") VALUES ($1, $2, $3)`, m.ID.String(), m.Source.Partition, m.Source.Offset)
	return err
}

// With database/sql failures are judged as with pgx: what the database refuses
// counts, an outage and contention do not.
func TestDatabaseSQL(t *testing.T) {
	s := newStage(t, 1)
	dead := s.newTopic(1)
	s.publish(0, 40, 1)
	killed, locked := 0, 0
	config := s.config(nil)
	config.DB, config.SQL = nil, openSQL(t, s.db.URL)
	config.MaxAttempts = 2
	config.OnPoison = kafka.DeadLetter{Topic: dead}
	config.Inbox.Retries = -1
	config.SQLHandler = func(ctx context.Context, tx *sql.Tx, m inbox.Message) error {
		switch m.Source.Offset {
		case 5:
			if killed++; killed <= 4 {
				_, err := tx.ExecContext(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
				return errors.Join(errors.New("no answer"), err)
			}
		case 10:
			if locked++; locked <= 4 {
				_, err := tx.ExecContext(ctx, `DO $$ BEGIN RAISE EXCEPTION SQLSTATE '40P01'; END $$`)
				return err
			}
		case 15:
			_, err := tx.ExecContext(ctx, `SELECT 1/0`)
			return err
		case 20:
			panic("no such customer")
		case 25:
			return inbox.Permanent(errors.New("no JSON"))
		}
		return sqlEffect(ctx, tx, m)
	}
	c := start(t, config)
	s.awaitEffects(37)
	await(t, "all is committed", func() bool { return s.committed(1)[0] == 40 })
	c.mustStop()
	s.checkEffects(37)
	if stats := c.Stats(); stats.Failures != 5 || stats.Panics != 2 || stats.Poisoned != 3 || stats.Contentions != 4 {
		t.Errorf("stats %+v, want 5 failures, 2 of them panics, 3 messages put aside, and 4 contentions", stats)
	}
	for n, m := range s.read(dead, 3) {
		if want := []string{"division by zero", "no such customer", "no JSON"}[n]; !strings.Contains(header(m, kafka.HeaderError), want) {
			t.Errorf("the error of dead letter %d is %q", n, header(m, kafka.HeaderError))
		}
	}
}

// Batches on database/sql are split to find who is to blame.
func TestDatabaseSQLBatches(t *testing.T) {
	s := newStage(t, 2)
	s.publish(0, 200, 2)
	config := s.config(nil)
	config.DB, config.SQL = nil, openSQL(t, s.db.URL)
	config.Concurrency, config.BatchSize = 3, 20
	config.OnPoison = kafka.DeadLetter{Topic: s.newTopic(1)}
	config.SQLBatchHandler = func(ctx context.Context, tx *sql.Tx, fresh []inbox.Message) error {
		for _, m := range fresh {
			if m.Source.Offset == 30 {
				return inbox.Permanent(errors.New("no JSON"))
			}
			if err := sqlEffect(ctx, tx, m); err != nil {
				return err
			}
		}
		return nil
	}
	c := start(t, config)
	s.awaitEffects(198)
	c.mustStop()
	if n := s.db.Int(t, `SELECT count(DISTINCT message_id) FROM effects`); n != 198 {
		t.Errorf("%d messages had an effect", n)
	}
}

// A *sql.DB and pgx's handlers do not fit together.
func TestBadSQLConfig(t *testing.T) {
	for want, change := range map[string]func(*kafka.Config){
		"DB: missing":                 func(c *kafka.Config) { c.DB = nil },
		"DB, SQL: set exactly one":    func(c *kafka.Config) { c.SQL = &sql.DB{} },
		"Handler and BatchHandler go": func(c *kafka.Config) { c.DB, c.SQL = nil, &sql.DB{} },
		"set exactly one of them, or": func(c *kafka.Config) { c.SQLHandler = sqlEffect },
		"OnPoison: Park needs DB":     func(c *kafka.Config) { c.DB, c.SQL = nil, &sql.DB{} },
		"Concurrency: -1":             func(c *kafka.Config) { c.Concurrency = -1 },
		"BatchSize: 65536":            func(c *kafka.Config) { c.BatchSize = 65536 },
	} {
		config := kafka.Config{
			Brokers: []string{"localhost:9092"}, Group: "g", Topics: []string{"orders"}, Inbox: &inbox.Inbox{Consumer: "c"}, DB: fakeBeginner{}, Handler: effect,
			HandlerTimeout: time.Second,
		}
		change(&config)
		if _, err := kafka.New(config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}
