package rabbitmq_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/rabbitmq"
)

// TestQueueDeleted deletes the queue under the consumer, which declares it
// again.
func TestQueueDeleted(t *testing.T) {
	b := newBench(t)
	config := b.config()
	config.Declare = func(channel *amqp.Channel) error {
		_, err := channel.QueueDeclare(b.queue, true, false, false, false, nil)
		return err
	}
	c := b.start(config)
	b.send(1, 5, oneKey)
	b.awaitEffects(5)
	if _, err := b.channel(t).QueueDelete(b.queue, false, false, false); err != nil {
		t.Fatal(err)
	}
	await(t, "the consumer to notice", func() bool { return b.log.count("cancelled consumer", "deleted") == 1 })
	await(t, "the consumer to come back", func() bool { return b.log.count("msg=consuming") == 2 })
	b.send(6, 10, oneKey)
	b.awaitEffects(10)
	c.mustStop(t)
	b.checkEmpty()
}

// TestQueueMissing waits for a queue that somebody else makes, and says so
// once.
func TestQueueMissing(t *testing.T) {
	b := newBench(t)
	if _, err := b.channel(t).QueueDelete(b.queue, false, false, false); err != nil {
		t.Fatal(err)
	}
	c := b.start(b.config())
	await(t, "three attempts", func() bool { return c.Stats().Interruptions >= 3 })
	if n := b.log.count("does not exist", b.queue); n != 1 {
		t.Errorf("%d lines about the missing queue, want 1", n)
	}
	if _, err := b.channel(t).QueueDeclare(b.queue, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	b.send(1, 5, oneKey)
	b.awaitEffects(5)
	c.mustStop(t)
}

// TestBrokerUnreachable starts before the broker can be reached, through the
// second of two addresses.
func TestBrokerUnreachable(t *testing.T) {
	b := newBench(t)
	dead, deadURL := newGate(t, b.url)
	dead.cut(true)
	g, url := newGate(t, b.url)
	g.cut(true)
	config := b.config()
	config.URLs = []string{deadURL, url}
	c := b.start(config)
	await(t, "both to be tried", func() bool { return c.Stats().Interruptions >= 4 })
	g.open()
	b.send(1, 5, oneKey)
	b.awaitEffects(5)
	c.mustStop(t)
	b.checkEmpty()
}

// TestDatabaseAway takes the database away in the middle of the work, again
// and again: no attempt is counted, although one would be enough.
func TestDatabaseAway(t *testing.T) {
	b := newBench(t)
	g, url := newGate(t, b.database.URL)
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	const count = 1500
	b.send(1, count, keys(5))
	config := b.config()
	config.DB, config.MaxAttempts, config.Concurrency = pool, 1, 3
	config.OnPoison = rabbitmq.DeadLetter{Exchange: unique("missing")}
	c := b.start(config)
	for outages, last := 1, 0; outages <= 5 && last < count; outages++ {
		await(t, "progress", func() bool { return len(b.effects()) > last })
		seen := b.log.count("cannot be used")
		g.cut(true)
		last = len(b.effects())
		await(t, "the outage to be seen", func() bool { return b.log.count("cannot be used") > seen })
		g.open()
		await(t, "its end to be seen", func() bool { return b.log.count("can be used again") > seen })
	}
	b.checkKeyOrder(b.awaitEffects(count), 5)
	c.mustStop(t)
	if s := c.Stats(); s.Failures != 0 || s.Poisoned != 0 || s.Interruptions != 0 {
		t.Errorf("%+v: the outage was blamed on messages", s)
	}
	b.checkEmpty()
}

// TestMissingTable makes no poison of messages when the inbox's table is not
// there yet.
func TestMissingTable(t *testing.T) {
	b := newBench(t)
	dead := b.broker.queue(t, nil)
	b.database.Exec(t, `ALTER TABLE inbox RENAME TO gone`)
	b.send(1, 5, oneKey)
	config := b.config()
	config.MaxAttempts = 1
	config.OnPoison = rabbitmq.DeadLetter{RoutingKey: dead}
	c := b.start(config)
	await(t, "a complaint", func() bool { return b.log.count("cannot be used", "relay migrate") == 1 })
	b.database.Exec(t, `ALTER TABLE gone RENAME TO inbox`)
	b.awaitEffects(5)
	c.mustStop(t)
	if n := b.ready(t, dead); n != 0 {
		t.Errorf("%d messages became poison", n)
	}
}

// TestLongOutage gives the messages back while the database is away, so that
// the broker does not take them back by itself, and goes on afterwards.
func TestLongOutage(t *testing.T) {
	b := newBench(t)
	g, url := newGate(t, b.database.URL)
	g.cut(true)
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	b.send(1, 20, oneKey)
	config := b.config()
	config.DB, config.MaxAttempts = pool, 1
	made, err := rabbitmq.New(config)
	if err != nil {
		t.Fatal(err)
	}
	made.SetOutagePatience(50 * time.Millisecond)
	c := b.run(made)
	await(t, "the messages to be back", func() bool {
		return c.Stats().Interruptions == 1 && b.ready(t, b.queue) == 20
	})
	g.open()
	if all := b.awaitEffects(20); !slices.IsSorted(all) {
		t.Errorf("not in order: %v", all)
	}
	c.mustStop(t)
	if s := c.Stats(); s.Failures != 0 || s.Duplicates != 0 || s.Interruptions != 1 {
		t.Errorf("%+v, want one interruption and nothing else", s)
	}
	b.checkEmpty()
}

// TestSlowDatabase has a message wait for another transaction that has claimed
// it, for longer than its handler may take. That is neither the message's fault
// nor an outage, and takes nothing of the handler's time.
func TestSlowDatabase(t *testing.T) {
	b := newBench(t)
	dead := b.broker.queue(t, nil)
	holder, err := b.database.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Rollback(context.Background()) }()
	m := event(1, "k")
	if _, err := holder.Exec(t.Context(), `INSERT INTO inbox (consumer, message_id) VALUES ('billing', $1)`, m.MessageId); err != nil {
		t.Fatal(err)
	}
	b.publish(t, b.queue, m)
	config := b.config()
	config.MaxAttempts, config.HandlerTimeout = 1, 500*time.Millisecond
	config.OnPoison = rabbitmq.DeadLetter{RoutingKey: dead}
	c := b.start(config)
	await(t, "the claim to wait", func() bool {
		return b.database.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 1
	})
	time.Sleep(2 * config.HandlerTimeout)
	if err := holder.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.awaitEffects(1)
	c.mustStop(t)
	if s := c.Stats(); s.Failures != 0 || s.Processed != 1 {
		t.Errorf("%+v, want one message processed and no failure", s)
	}
	if n := b.log.count("cannot be used"); n != 0 {
		t.Errorf("%d lines about an outage, want none", n)
	}
	b.checkEmpty()
}

// watcher notes what is told of database and broker.
type watcher struct {
	inbox.Unobserved
	database, broker atomic.Bool
}

func (w *watcher) DatabaseUp(_ string, up bool)  { w.database.Store(up) }
func (w *watcher) BrokerUp(_, _ string, up bool) { w.broker.Store(up) }

// TestOutagesAreTold takes database and broker from a consumer that has no
// message.
func TestOutagesAreTold(t *testing.T) {
	b := newBench(t)
	database, databaseURL := newGate(t, b.database.URL)
	broker, brokerURL := newGate(t, b.url)
	pool, err := pgxpool.New(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	w := new(watcher)
	config := b.config()
	config.URLs, config.DB, config.Inbox.Observer = []string{brokerURL}, pool, w
	c := b.start(config)
	for _, side := range []struct {
		what string
		gate *gate
		up   *atomic.Bool
	}{{"database", database, &w.database}, {"broker", broker, &w.broker}} {
		await(t, "the "+side.what+" to be up", side.up.Load)
		side.gate.cut(true)
		await(t, "the "+side.what+" to be away", func() bool { return !side.up.Load() })
		side.gate.open()
		await(t, "the "+side.what+" to be up again", side.up.Load)
	}
	if n := b.log.count("cannot be used"); n != 1 {
		t.Errorf("%d lines about the database, want 1", n)
	}
	c.mustStop(t)
}
