package rabbitmq_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/rabbitmq"
)

// TestConsume processes messages in their order, each once, and leaves an
// empty queue.
func TestConsume(t *testing.T) {
	b := newBench(t)
	b.send(1, 200, oneKey)
	c := b.start(b.config())
	all := b.awaitEffects(200)
	c.mustStop(t)
	if !slices.IsSorted(all) {
		t.Errorf("not in order: %v", all)
	}
	if s := c.Stats(); s.Processed != 200 || s.Duplicates != 0 || s.Interruptions != 0 {
		t.Errorf("%+v, want 200 processed and nothing else", s)
	}
	b.checkEmpty()
}

// TestAcknowledgedAfterCommit loses the connection around a commit: before it
// the message must still be the broker's, and after it the message comes again
// and is recognised.
func TestAcknowledgedAfterCommit(t *testing.T) {
	b := newBench(t)
	g, url := newGate(t, b.url)
	var commits atomic.Int32
	pool := &hooked{Pool: b.database.Pool}
	pool.before = func() {
		if commits.Add(1) == 1 {
			g.cut(false)
			// Ready again: it was not acknowledged before the commit.
			await(t, "the message to be ready again", func() bool { return b.ready(t, b.queue) == 1 })
		}
	}
	config := b.config()
	config.URLs, config.DB = []string{url}, pool
	b.send(1, 1, oneKey)
	c := b.start(config)
	await(t, "a duplicate", func() bool { return c.Stats().Duplicates == 1 })
	c.mustStop(t)
	if all := b.effects(); len(all) != 1 {
		t.Errorf("effects %v, want one", all)
	}
	b.checkEmpty()
}

// TestConnectionsLost cuts the connection again and again under load.
func TestConnectionsLost(t *testing.T) {
	for _, batched := range []bool{false, true} {
		t.Run(fmt.Sprintf("batches=%v", batched), func(t *testing.T) {
			b := newBench(t)
			g, url := newGate(t, b.url)
			const count = 3000
			b.send(1, count, keys(7))
			config := b.config()
			config.URLs, config.Concurrency, config.Prefetch = []string{url}, 4, 100
			if batched {
				config.Handler, config.BatchHandler, config.BatchSize = nil, effects, 10
			}
			c := b.start(config)
			for cuts, last := 0, 0; cuts < 10; {
				await(t, "progress", func() bool { return len(b.effects()) > last })
				if last = len(b.effects()); last == count {
					break
				}
				g.cut(false)
				cuts++
			}
			b.checkKeyOrder(b.awaitEffects(count), 7)
			c.mustStop(t)
			b.checkEmpty()
			if c.Stats().Interruptions == 0 {
				t.Error("the connection was never lost")
			}
		})
	}
}

// effects is a batch handler's work.
func effects(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
	for _, m := range fresh {
		if err := effect(ctx, tx, m); err != nil {
			return err
		}
	}
	return nil
}

// checkKeyOrder fails if the messages of a key are not in their order.
func (b *bench) checkKeyOrder(all []int64, keys int64) {
	b.t.Helper()
	highest := make(map[int64]int64)
	for _, n := range all {
		if n < highest[n%keys] {
			b.t.Errorf("key k%d: %d after %d", n%keys, n, highest[n%keys])
		}
		highest[n%keys] = max(highest[n%keys], n)
	}
}

// TestConcurrency runs handlers at the same time, but never two of one key.
func TestConcurrency(t *testing.T) {
	b := newBench(t)
	const count, kinds = 600, 12
	b.send(1, count, keys(kinds))
	var mu sync.Mutex
	running, widest := make(map[string]bool), 0
	config := b.config()
	config.Concurrency = 6
	config.Handler = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		mu.Lock()
		if running[string(m.Key)] {
			t.Errorf("two handlers of key %s", m.Key)
		}
		running[string(m.Key)] = true
		widest = max(widest, len(running))
		mu.Unlock()
		defer func() {
			mu.Lock()
			defer mu.Unlock()
			delete(running, string(m.Key))
		}()
		return effect(ctx, tx, m)
	}
	c := b.start(config)
	b.checkKeyOrder(b.awaitEffects(count), kinds)
	c.mustStop(t)
	if widest < 2 {
		t.Errorf("at most %d handlers at a time", widest)
	}
	b.checkEmpty()
}

// TestMessagesWithoutKeySpread needs two handlers at the same time to go on.
func TestMessagesWithoutKeySpread(t *testing.T) {
	b := newBench(t)
	b.send(1, 2, func(int) string { return "" })
	var both sync.WaitGroup
	both.Add(2)
	config := b.config()
	config.Concurrency = 2
	config.Handler = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		both.Done()
		both.Wait()
		return effect(ctx, tx, m)
	}
	c := b.start(config)
	b.awaitEffects(2)
	c.mustStop(t)
}

// TestPrefetchBoundsWhatIsHeld holds all handlers and counts what the broker
// has sent.
func TestPrefetchBoundsWhatIsHeld(t *testing.T) {
	b := newBench(t)
	b.send(1, 50, oneKey)
	release := make(chan struct{})
	entered := make(chan struct{}, 50)
	config := b.config()
	config.Prefetch = 10
	config.Handler = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		entered <- struct{}{}
		<-release
		return effect(ctx, tx, m)
	}
	c := b.start(config)
	<-entered
	await(t, "10 messages to be sent", func() bool { return b.ready(t, b.queue) <= 40 })
	if n := b.ready(t, b.queue); n != 40 {
		t.Errorf("%d messages are left, want 40", n)
	}
	close(release)
	b.awaitEffects(50)
	c.mustStop(t)
	b.checkEmpty()
}

// TestCleanStop stops consumers in the middle of the work again and again: no
// message that was processed comes again, and none is lost.
func TestCleanStop(t *testing.T) {
	for _, batched := range []bool{false, true} {
		t.Run(fmt.Sprintf("batches=%v", batched), func(t *testing.T) {
			b := newBench(t)
			const count = 2000
			b.send(1, count, keys(5))
			config := b.config()
			config.Concurrency, config.Prefetch = 3, 200
			if batched {
				config.Handler, config.BatchHandler, config.BatchSize = nil, effects, 7
			}
			var processed int64
			for stops := 0; processed < count; stops++ {
				c := b.start(config)
				if stops < 5 {
					await(t, "progress", func() bool { return c.Stats().Processed > 50 })
				} else {
					await(t, "the rest", func() bool { return processed+c.Stats().Processed == count })
				}
				c.mustStop(t)
				s := c.Stats()
				if s.Duplicates != 0 {
					t.Errorf("stop %d: %d messages came again", stops, s.Duplicates)
				}
				processed += s.Processed
				if left := b.ready(t, b.queue); left != count-int(processed) {
					t.Fatalf("stop %d: %d processed, and %d left of %d", stops, processed, left, count)
				}
			}
			b.checkKeyOrder(b.awaitEffects(count), 5)
		})
	}
}

// TestStopTimeout stops while a handler hangs: its context ends, its
// transaction is rolled back and the message stays in the queue.
func TestStopTimeout(t *testing.T) {
	b := newBench(t)
	b.send(1, 3, oneKey)
	entered := make(chan struct{}, 3)
	config := b.config()
	config.StopTimeout = 50 * time.Millisecond
	config.HandlerTimeout = -1
	config.Handler = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if err := effect(ctx, tx, m); err != nil {
			return err
		}
		entered <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	c := b.start(config)
	<-entered
	if err := c.stop(t); err == nil {
		t.Error("Run returned nil although a handler was interrupted")
	}
	if all := b.effects(); len(all) != 0 {
		t.Errorf("effects %v, want none", all)
	}
	if n := b.ready(t, b.queue); n != 3 {
		t.Errorf("%d messages are left, want 3", n)
	}
	if s := c.Stats(); s.Failures != 0 || s.Poisoned != 0 {
		t.Errorf("%+v: the message was blamed", s)
	}
}

// TestRunTwice refuses a second Run beside the first one, and allows it after.
func TestRunTwice(t *testing.T) {
	b := newBench(t)
	c := b.start(b.config())
	b.send(1, 1, oneKey)
	b.awaitEffects(1)
	if err := c.Run(t.Context()); err == nil {
		t.Error("a second Run was allowed")
	}
	c.mustStop(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	b.send(2, 2, oneKey)
	b.awaitEffects(2)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestBatches acknowledges whole batches, and a message that fails in one
// costs its neighbours nothing.
func TestBatches(t *testing.T) {
	b := newBench(t)
	dead := b.broker.queue(t, nil)
	const count = 500
	b.send(1, count, oneKey)
	largest := 0
	config := b.config()
	config.Handler, config.MaxAttempts, config.Prefetch = nil, 2, 200
	config.OnPoison = rabbitmq.DeadLetter{RoutingKey: dead}
	config.BatchSize = 50
	config.BatchHandler = func(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
		largest = max(largest, len(fresh))
		for _, m := range fresh {
			if m.Sequence%100 == 0 {
				return errHandler
			}
		}
		return effects(ctx, tx, fresh)
	}
	c := b.start(config)
	all := b.awaitEffects(count - 5)
	b.take(t, dead, 5)
	c.mustStop(t)
	if !slices.IsSorted(all) {
		t.Errorf("not in order: %v", all)
	}
	if largest < 2 {
		t.Errorf("the largest batch had %d messages", largest)
	}
	b.checkEmpty()
}
