package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/rabbitmq"
)

// TestLockStorm holds a lock that all messages need, as a migration does, for
// more attempts than a message has: none is put aside, and the order is kept.
func TestLockStorm(t *testing.T) {
	for _, retry := range []rabbitmq.Retry{rabbitmq.RetryInPlace, rabbitmq.RetryRequeue} {
		t.Run(fmt.Sprintf("retry=%v", retry), func(t *testing.T) {
			b := newBench(t)
			b.send(1, 20, oneKey)
			lock, err := b.database.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = lock.Rollback(context.Background()) }()
			if _, err := lock.Exec(t.Context(), `LOCK TABLE effects IN ACCESS EXCLUSIVE MODE`); err != nil {
				t.Fatal(err)
			}
			config := b.config()
			config.MaxAttempts, config.Retry = 2, retry
			config.Handler = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
				if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '20ms'`); err != nil {
					return err
				}
				return effect(ctx, tx, m)
			}
			c := b.start(config)
			await(t, "the lock to be in the way", func() bool { return c.Stats().Contentions >= 8 })
			if err := lock.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			if all := b.awaitEffects(20); !slices.IsSorted(all) {
				t.Errorf("not in order: %v", all)
			}
			c.mustStop(t)
			if s := c.Stats(); s.Failures != 0 || s.Poisoned != 0 {
				t.Errorf("%+v: the lock was blamed on messages", s)
			}
			if n := b.log.count("wait for other transactions"); n != 1 {
				t.Errorf("%d lines about it, want one a minute", n)
			}
			if n := b.log.count("cannot be used"); n != 0 {
				t.Errorf("%d lines about an outage, want none", n)
			}
			b.checkEmpty()
		})
	}
}

// TestBreaker keeps the messages, but for the first ones, when what the handlers
// need is away, until it is back.
func TestBreaker(t *testing.T) {
	for _, test := range []struct {
		name        string
		concurrency int
		retry       rabbitmq.Retry
	}{{"in place", 1, rabbitmq.RetryInPlace}, {"by key", 4, rabbitmq.RetryInPlace}, {"requeue", 1, rabbitmq.RetryRequeue}} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			dead := b.broker.queue(t, nil)
			b.send(1, 30, keys(7))
			var away atomic.Bool
			away.Store(true)
			config := b.config()
			config.MaxAttempts, config.Concurrency, config.Retry = 2, test.concurrency, test.retry
			config.OnPoison = rabbitmq.DeadLetter{RoutingKey: dead}
			config.Handler = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
				if away.Load() {
					return fmt.Errorf("reserving for order %d: stock: 503", m.Sequence)
				}
				return effect(ctx, tx, m)
			}
			c := b.start(config)
			await(t, "the breaker to open", func() bool { return c.Stats().BreakerOpen })
			failures := c.Stats().Failures
			await(t, "several more trials", func() bool { return c.Stats().Failures >= failures+3 })
			if s := c.Stats(); s.Poisoned != 2 || s.Processed != 0 {
				t.Errorf("%+v, want two messages put aside", s)
			}
			away.Store(false)
			b.awaitEffects(28)
			await(t, "the breaker to close", func() bool { return !c.Stats().BreakerOpen })
			c.mustStop(t)
			if n := b.ready(t, dead); n != 2 {
				t.Errorf("%d dead letters, want 2", n)
			}
			b.checkEmpty()
		})
	}
}

// TestOneKeyHoldsUpNoOther has all messages of one key fail, with more keys than
// handlers.
func TestOneKeyHoldsUpNoOther(t *testing.T) {
	b := newBench(t)
	const count, kinds = 300, 12
	b.send(1, count, keys(kinds))
	var ready atomic.Bool
	config := b.config()
	config.Concurrency, config.Prefetch, config.MaxAttempts = 2, count, 1_000_000
	config.Handler = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if string(m.Key) == "k5" && !ready.Load() {
			return errors.New("not yet")
		}
		return effect(ctx, tx, m)
	}
	c := b.start(config)
	b.awaitEffects(count - count/kinds)
	ready.Store(true)
	b.checkKeyOrder(b.awaitEffects(count), kinds)
	c.mustStop(t)
	b.checkEmpty()
}

// TestPause begins nothing while it is paused, and keeps the subscription.
func TestPause(t *testing.T) {
	b := newBenchOn(t, newBroker(t), newBroker(t).queue(t, amqp.Table{"x-queue-type": "quorum"}))
	config := b.config()
	config.Prefetch = 5
	made, err := rabbitmq.New(config)
	if err != nil {
		t.Fatal(err)
	}
	made.Pause()
	c := b.run(made)
	b.send(1, 10, oneKey)
	await(t, "what is prefetched", func() bool { return b.ready(t, b.queue) == 5 })
	if s := c.Stats(); !s.Paused || s.Processed != 0 {
		t.Errorf("%+v while it is paused", s)
	}
	made.Resume()
	b.awaitEffects(10)
	c.mustStop(t)
	if s := c.Stats(); s.Paused || s.Interruptions != 0 || s.Duplicates != 0 {
		t.Errorf("%+v, want neither interruptions nor duplicates", s)
	}
	b.checkEmpty()
}
