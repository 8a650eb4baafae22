package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/kafka"
)

// watcher notes what a consumer's observer is told.
type watcher struct {
	inbox.Unobserved
	mu       sync.Mutex
	database []bool
	breaker  []bool
	reasons  map[inbox.Reason]int
}

func (w *watcher) DatabaseUp(_ string, up bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.database = append(w.database, up)
}

func (w *watcher) BreakerOpen(_ string, open bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.breaker = append(w.breaker, open)
}

func (w *watcher) Failed(_, _ string, reason inbox.Reason) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reasons == nil {
		w.reasons = make(map[inbox.Reason]int)
	}
	w.reasons[reason]++
}

// each makes a batch handler of a handler.
func each(handler inbox.Handler) inbox.BatchHandler {
	return func(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
		for _, m := range fresh {
			if err := handler(ctx, tx, m); err != nil {
				return err
			}
		}
		return nil
	}
}

// A lock that is held for long, as by a migration, is no message's fault: all of
// them wait for it, in their order, and none is put aside.
func TestLockStorm(t *testing.T) {
	for _, batches := range []bool{false, true} {
		t.Run(fmt.Sprintf("batches=%v", batches), func(t *testing.T) {
			s := newStage(t, 1)
			s.publish(0, 20, 1)
			lock, err := s.db.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = lock.Rollback(context.Background()) }()
			if _, err := lock.Exec(t.Context(), `LOCK TABLE effects IN ACCESS EXCLUSIVE MODE`); err != nil {
				t.Fatal(err)
			}
			handler := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
				if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '20ms'`); err != nil {
					return err
				}
				return effect(ctx, tx, m)
			}
			config := s.config(handler)
			if batches {
				config.Handler, config.BatchHandler = nil, each(handler)
			}
			w, log := &watcher{}, &syncBuffer{}
			config.Inbox.Observer, config.Logger, config.MaxAttempts = w, newLogger(log), 2
			c := start(t, config)
			await(t, "the lock is in the way again and again", func() bool { return c.Stats().Contentions >= 8 })
			if err := lock.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.awaitEffects(20)
			c.mustStop()
			s.checkEffects(20)
			if stats := c.Stats(); stats.Failures != 0 || stats.Poisoned != 0 {
				t.Errorf("stats %+v", stats)
			}
			if n := strings.Count(log.String(), "wait for other transactions"); n != 1 {
				t.Errorf("%d lines about it, want one a minute:\n%s", n, log)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.reasons[inbox.Contention] < 8 || w.reasons[inbox.DatabaseFailed] > 0 {
				t.Errorf("the observer was told of %v", w.reasons)
			}
		})
	}
}

// A serialization failure that comes again more often than Inbox.Retries is no
// outage of the database.
func TestContentionIsNoOutage(t *testing.T) {
	for _, state := range []string{"40001", "40P01"} {
		t.Run(state, func(t *testing.T) {
			s := newStage(t, 1)
			s.publish(0, 1, 1)
			var tries atomic.Int64
			config := s.config(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
				if tries.Add(1) < 8 {
					_, err := tx.Exec(ctx, fmt.Sprintf(`DO $$ BEGIN RAISE EXCEPTION SQLSTATE '%s'; END $$`, state))
					return err
				}
				return effect(ctx, tx, m)
			})
			w, log := &watcher{}, &syncBuffer{}
			config.Inbox.Observer, config.Logger, config.Inbox.Retries = w, newLogger(log), 2
			c := start(t, config)
			s.awaitEffects(1)
			c.mustStop()
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.database) > 2 || strings.Contains(log.String(), "cannot be used") {
				t.Errorf("the database was told to be up %v, logged:\n%s", w.database, log)
			}
			if stats := c.Stats(); stats.Failures != 0 || stats.Contentions != 2 {
				t.Errorf("stats %+v, want 2 contentions and no failure", stats)
			}
		})
	}
}

// When what the handlers need is away the messages are kept, but for the first
// ones, until it is back.
func TestMessagesThatFailAlikeOpenTheBreaker(t *testing.T) {
	for _, test := range []struct {
		name        string
		concurrency int
		batches     bool
	}{{"one by one", 1, false}, {"batches", 1, true}, {"by key", 4, false}} {
		t.Run(test.name, func(t *testing.T) {
			s := newStage(t, 1)
			s.publish(0, 40, 1)
			var away atomic.Bool
			away.Store(true)
			handler := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
				if away.Load() {
					return fmt.Errorf("reserving for order %s: stock: 503", m.Payload)
				}
				return effect(ctx, tx, m)
			}
			config := s.config(handler)
			if test.batches {
				config.Handler, config.BatchHandler = nil, each(handler)
			}
			w, log := &watcher{}, &syncBuffer{}
			config.Concurrency, config.MaxAttempts = test.concurrency, 2
			config.Inbox.Observer, config.Logger = w, newLogger(log)
			c := start(t, config)
			await(t, "the breaker opens", func() bool { return c.Stats().BreakerOpen })
			failures := c.Stats().Failures
			await(t, "several more trials", func() bool { return c.Stats().Failures >= failures+3 })
			if stats := c.Stats(); stats.Poisoned != 2 || stats.Processed != 0 {
				t.Errorf("stats %+v, want two messages put aside", stats)
			}
			away.Store(false)
			s.awaitEffects(38)
			await(t, "the breaker closes", func() bool { return !c.Stats().BreakerOpen })
			c.mustStop()
			if test.concurrency == 1 {
				s.checkEffects(38)
			}
			if n := s.db.Int(t, `SELECT count(*) FROM inbox_parked`); n != 2 {
				t.Errorf("%d messages are parked, want 2", n)
			}
			if n := strings.Count(log.String(), "failed alike"); n != 1 {
				t.Errorf("%d lines about it, want one a minute:\n%s", n, log)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if got := fmt.Sprint(w.breaker); got != "[false true false]" {
				t.Errorf("the observer was told that the breaker is open: %s", got)
			}
		})
	}
}

// What the handler calls permanent, and what no breaker is wanted for, goes aside
// however much of it there is.
func TestPermanentErrorsOpenNoBreaker(t *testing.T) {
	for name, change := range map[string]func(*kafka.Config) error{
		"permanent":  func(*kafka.Config) error { return inbox.Permanent(errors.New("no JSON")) },
		"no breaker": func(config *kafka.Config) error { config.BreakerThreshold = -1; return errors.New("no JSON") },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, 1)
			s.publish(0, 10, 1)
			config := s.config(nil)
			wrong := change(&config)
			config.Handler = func(context.Context, pgx.Tx, inbox.Message) error { return wrong }
			config.MaxAttempts = 2
			c := start(t, config)
			await(t, "all are put aside", func() bool { return c.Stats().Poisoned == 10 })
			c.mustStop()
			if c.Stats().BreakerOpen {
				t.Error("the breaker is open")
			}
		})
	}
}

// The messages of one key that fail again and again hold up no others, and are
// committed only when they are done; a successor knows what was processed behind
// them.
func TestConcurrencyByKey(t *testing.T) {
	for _, batches := range []bool{false, true} {
		t.Run(fmt.Sprintf("batches=%v", batches), func(t *testing.T) {
			s := newStage(t, 1)
			const count, held = 700, 100 // record gives seven keys
			s.publish(0, count, 1)
			var ready atomic.Bool
			handler := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
				if string(m.Key) == "key-3" && !ready.Load() {
					return errors.New("not yet")
				}
				return effect(ctx, tx, m)
			}
			config := s.config(handler)
			if batches {
				config.Handler, config.BatchHandler, config.BatchSize = nil, each(handler), 10
			}
			config.Concurrency, config.MaxAttempts = 4, 1_000_000
			c := start(t, config)
			s.awaitEffects(count - held)
			await(t, "what is before the key is committed", func() bool { return s.committed(1)[0] == 3 })
			c.mustStop()
			if got := s.committed(1)[0]; got != 3 {
				t.Errorf("committed %d, want 3, which is not processed", got)
			}
			ready.Store(true)
			c = start(t, config)
			s.awaitEffects(count)
			await(t, "all is committed", func() bool { return s.committed(1)[0] == count })
			c.mustStop()
			if n := s.db.Int(t, `SELECT count(DISTINCT message_id) FROM effects`); n != count || s.db.Int(t, `SELECT count(*) FROM effects`) != count {
				t.Errorf("%d messages had an effect, or some more than one", n)
			}
			if n := s.db.Int(t, `SELECT count(*) FROM (SELECT "offset" < max("offset") OVER (PARTITION BY "offset" % 7 ORDER BY n) AS late FROM effects) x WHERE late`); n != 0 {
				t.Errorf("%d effects came after a later one of their key", n)
			}
			checkGoroutines(t)
		})
	}
}

// A paused consumer begins nothing, keeps its partition and goes on when it is
// told to.
func TestPause(t *testing.T) {
	s := newStage(t, 1)
	other := &stage{t: t, brokers: s.brokers, client: s.client, db: s.db, topic: s.newTopic(1)}
	config := s.config(effect)
	config.Topics = []string{s.topic, other.topic}
	made := start(t, config)
	made.Pause(s.topic)
	s.publish(0, 10, 1)
	other.publish(0, 10, 1)
	s.awaitEffects(10)
	await(t, "the messages are known", func() bool { return made.Stats().Lag == 10 })
	time.Sleep(2 * config.HeartbeatInterval)
	if stats := made.Stats(); !stats.Paused || stats.Processed != 10 || stats.Partitions != 2 {
		t.Errorf("stats %+v, want the other topic's messages alone", stats)
	}
	made.Resume(s.topic)
	s.awaitEffects(20)
	made.Pause()
	s.publish(10, 20, 1)
	await(t, "the messages are known", func() bool { return made.Stats().Lag == 10 })
	made.mustStop()
	if stats := made.Stats(); stats.Processed != 20 {
		t.Errorf("stats %+v, want 20 processed", stats)
	}
}
