package rabbitmq_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/parked"
	"github.com/outboxrelay/relay/inbox/rabbitmq"
)

// failing returns a handler that fails for one message as long as it is
// called less than times times, zero being for ever.
func failing(sequence int64, times int) (inbox.Handler, *int) {
	calls := new(int)
	return func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if err := effect(ctx, tx, m); err != nil {
			return err
		}
		if m.Sequence != sequence {
			return nil
		}
		if *calls++; times == 0 || *calls <= times {
			return errHandler
		}
		return nil
	}, calls
}

// TestRetryInPlace keeps the order when a message fails for a while.
func TestRetryInPlace(t *testing.T) {
	b := newBench(t)
	b.send(1, 10, oneKey)
	config := b.config()
	config.Handler, _ = failing(3, 4)
	c := b.start(config)
	all := b.awaitEffects(10)
	c.mustStop(t)
	if !slices.IsSorted(all) {
		t.Errorf("not in order: %v", all)
	}
	if s := c.Stats(); s.Failures != 4 || s.Poisoned != 0 || s.Processed != 10 {
		t.Errorf("%+v, want 4 failures and 10 processed", s)
	}
	if n := b.log.count("processing a message failed", errHandler.Error()); n != 4 {
		t.Errorf("%d lines about failures, want 4", n)
	}
	b.checkEmpty()
}

// TestRetryRequeue gives a failing message back, so that others pass it, and
// counts its attempts over its deliveries.
func TestRetryRequeue(t *testing.T) {
	for _, kind := range []string{"classic", "quorum"} {
		t.Run(kind, func(t *testing.T) {
			b := newBenchOn(t, newBroker(t), newBroker(t).queue(t, amqp.Table{"x-queue-type": kind}))
			dead := b.broker.queue(t, nil)
			b.send(1, 10, oneKey)
			config := b.config()
			config.Retry, config.MaxAttempts, config.Prefetch = rabbitmq.RetryRequeue, 3, 2
			config.OnPoison = rabbitmq.DeadLetter{RoutingKey: dead}
			var calls *int
			config.Handler, calls = failing(3, 0)
			c := b.start(config)
			b.awaitEffects(9)
			d := b.take(t, dead, 1)[0]
			c.mustStop(t)
			if *calls != 3 {
				t.Errorf("%d attempts, want 3", *calls)
			}
			if n := d.Headers[rabbitmq.HeaderAttempts]; n != int64(3) {
				t.Errorf("header %s is %v, want 3", rabbitmq.HeaderAttempts, n)
			}
			b.checkEmpty()
		})
	}
}

// TestDeadLetter compares what is published with what was received.
func TestDeadLetter(t *testing.T) {
	b := newBench(t)
	dead := b.broker.queue(t, nil)
	other := b.broker.queue(t, nil)
	exchange := unique("dead")
	channel := b.channel(t)
	if err := channel.ExchangeDeclare(exchange, "topic", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = channel.ExchangeDelete(exchange, false, false) })
	if err := channel.QueueBind(dead, b.queue, exchange, false, nil); err != nil {
		t.Fatal(err)
	}
	m := event(2, "k")
	maps.Copy(m.Headers, amqp.Table{
		"tenant": "acme", "n": int64(7), "deep": amqp.Table{"list": []any{"a", int32(1)}}, "CC": []any{other},
	})
	m.ContentEncoding, m.CorrelationId, m.ReplyTo, m.AppId, m.Priority = "identity", "c-1", "answers", "shop", 3
	m.Expiration, m.UserId = "3600000", "guest"
	b.publish(t, b.queue, event(1, "k"), m, event(3, "k"))
	b.take(t, other, 1) // the copy that CC asked for

	config := b.config()
	config.MaxAttempts = 2
	config.OnPoison = rabbitmq.DeadLetter{Exchange: exchange}
	config.Handler, _ = failing(2, 0)
	c := b.start(config)
	b.awaitEffects(2)
	d := b.take(t, dead, 1)[0]
	c.mustStop(t)
	b.checkEmpty()

	headers := maps.Clone(m.Headers)
	delete(headers, "CC")
	for name, want := range headers {
		if got := d.Headers[name]; !equal(got, want) {
			t.Errorf("header %s is %#v, want %#v", name, got, want)
		}
	}
	for name, want := range map[string]any{
		rabbitmq.HeaderAttempts: int64(2), rabbitmq.HeaderConsumer: "billing", rabbitmq.HeaderSource: b.queue,
		rabbitmq.HeaderExchange: "", rabbitmq.HeaderRoutingKey: b.queue,
		rabbitmq.HeaderExpiration: "3600000", rabbitmq.HeaderUserID: "guest",
	} {
		if got := d.Headers[name]; got != want {
			t.Errorf("header %s is %#v, want %#v", name, got, want)
		}
	}
	if text, _ := d.Headers[rabbitmq.HeaderError].(string); !strings.Contains(text, errHandler.Error()) {
		t.Errorf("header %s is %q, want it to contain %q", rabbitmq.HeaderError, text, errHandler)
	}
	if _, ok := d.Headers["CC"]; ok || b.ready(t, other) != 0 {
		t.Error("the dead letter was sent to the queue of CC too")
	}
	if d.Expiration != "" || d.UserId != "" || d.DeliveryMode != amqp.Persistent {
		t.Errorf("expiration %q, user %q, delivery mode %d: want none, none, 2", d.Expiration, d.UserId, d.DeliveryMode)
	}
	got := [...]any{d.MessageId, d.Type, d.ContentType, d.ContentEncoding, d.CorrelationId, d.ReplyTo, d.AppId, d.Priority, d.Timestamp.Unix(), string(d.Body)}
	want := [...]any{m.MessageId, m.Type, m.ContentType, m.ContentEncoding, m.CorrelationId, m.ReplyTo, m.AppId, m.Priority, m.Timestamp.Unix(), string(m.Body)}
	if got != want {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func equal(a, b any) bool {
	if x, ok := a.(amqp.Table); ok {
		y, ok := b.(amqp.Table)
		return ok && maps.EqualFunc(x, y, equal)
	}
	if x, ok := a.([]any); ok {
		y, ok := b.([]any)
		return ok && slices.EqualFunc(x, y, equal)
	}
	return a == b
}

// TestDeadLetterIsNotLost takes away everything that a dead letter needs: the
// exchange, its binding, the connection. The message stays until it is in a
// queue, and is processed by nobody meanwhile.
func TestDeadLetterIsNotLost(t *testing.T) {
	b := newBench(t)
	dead := b.broker.queue(t, amqp.Table{"x-max-length": int64(1), "x-overflow": "reject-publish"})
	exchange := unique("dead")
	b.send(1, 2, oneKey)
	config := b.config()
	config.MaxAttempts = 1
	config.OnPoison = rabbitmq.DeadLetter{Exchange: exchange}
	config.Handler, _ = failing(1, 0)
	c := b.start(config)
	await(t, "a complaint about the exchange", func() bool { return b.log.count("could not be put aside", "does not exist") > 0 })

	channel := b.channel(t)
	if err := channel.ExchangeDeclare(exchange, "fanout", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = channel.ExchangeDelete(exchange, false, false) })
	await(t, "a complaint about the binding", func() bool { return b.log.count("could not be put aside", "bind a queue") > 0 })

	b.publish(t, dead, event(99, ""))
	if err := channel.QueueBind(dead, "", exchange, false, nil); err != nil {
		t.Fatal(err)
	}
	await(t, "a complaint about the full queue", func() bool { return b.log.count("could not be put aside", "nack") > 0 })
	if all := b.effects(); len(all) != 0 {
		t.Errorf("effects %v: the message behind overtook", all)
	}
	if s := c.Stats(); s.Poisoned != 0 {
		t.Errorf("%+v: it was counted as put aside", s)
	}

	b.take(t, dead, 1)
	if d := b.take(t, dead, 1)[0]; d.MessageId != event(1, "").MessageId {
		t.Errorf("dead letter %s, want message 1", d.MessageId)
	}
	b.awaitEffects(1)
	c.mustStop(t)
	b.checkEmpty()
}

// TestStopWhileADeadLetterCannotBePublished leaves the message in the queue.
func TestStopWhileADeadLetterCannotBePublished(t *testing.T) {
	b := newBench(t)
	b.send(1, 1, oneKey)
	config := b.config()
	config.MaxAttempts = 1
	config.OnPoison = rabbitmq.DeadLetter{Exchange: unique("missing")}
	config.Handler, _ = failing(1, 0)
	c := b.start(config)
	await(t, "a complaint about the exchange", func() bool { return b.log.count("could not be put aside") > 0 })
	c.mustStop(t)
	if n := b.ready(t, b.queue); n != 1 {
		t.Errorf("%d messages are left, want 1", n)
	}
}

// TestPanic rolls back, reports the stack, and goes on.
func TestPanic(t *testing.T) {
	b := newBench(t)
	dead := b.broker.queue(t, nil)
	b.send(1, 3, oneKey)
	config := b.config()
	config.MaxAttempts = 2
	config.OnPoison = rabbitmq.DeadLetter{RoutingKey: dead}
	config.Handler = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if err := effect(ctx, tx, m); err != nil {
			return err
		}
		if m.Sequence == 2 && divide(int(m.Sequence)-2) > 0 {
			return errHandler
		}
		return nil
	}
	c := b.start(config)
	b.awaitEffects(2)
	b.take(t, dead, 1)
	c.mustStop(t)
	if all := b.effects(); !slices.Equal(all, []int64{1, 3}) {
		t.Errorf("effects %v, want 1 and 3", all)
	}
	if s := c.Stats(); s.Panics != 2 || s.Failures != 2 || s.Poisoned != 1 {
		t.Errorf("%+v, want 2 panics", s)
	}
	if b.log.count("integer divide by zero", "divide(") == 0 {
		t.Error("the log does not show where it panicked")
	}
}

//go:noinline
func divide(by int) int { return 1 / by }

// TestHandlerTimeout fails a message whose handler takes too long, also when it
// waits for a lock in the database.
func TestHandlerTimeout(t *testing.T) {
	b := newBench(t)
	dead := b.broker.queue(t, nil)
	b.database.Exec(t, `CREATE TABLE accounts (id int PRIMARY KEY); INSERT INTO accounts VALUES (1)`)
	holder, err := b.database.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Rollback(context.Background()) }()
	if _, err := holder.Exec(t.Context(), `SELECT FROM accounts FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	b.send(1, 2, oneKey)
	config := b.config()
	config.MaxAttempts, config.HandlerTimeout = 2, 500*time.Millisecond
	config.OnPoison = rabbitmq.DeadLetter{RoutingKey: dead}
	config.Handler = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if m.Sequence == 1 {
			if _, err := tx.Exec(ctx, `SELECT FROM accounts FOR UPDATE`); err != nil {
				return err
			}
		}
		return effect(context.WithoutCancel(ctx), tx, m)
	}
	c := b.start(config)
	d := b.take(t, dead, 1)[0]
	if text := d.Headers[rabbitmq.HeaderError].(string); !strings.Contains(text, "HandlerTimeout") {
		t.Errorf("header %s is %q, want it to name HandlerTimeout", rabbitmq.HeaderError, text)
	}
	b.awaitEffects(1)
	c.mustStop(t)
}

// TestMessageWithoutID is poison at once, unless IDOf knows one.
func TestMessageWithoutID(t *testing.T) {
	b := newBench(t)
	dead := b.broker.queue(t, nil)
	m := event(1, "k")
	m.MessageId = ""
	b.publish(t, b.queue, m, event(2, "k"))
	config := b.config()
	config.OnPoison = rabbitmq.DeadLetter{RoutingKey: dead}
	c := b.start(config)
	d := b.take(t, dead, 1)[0]
	b.awaitEffects(1)
	if n := d.Headers[rabbitmq.HeaderAttempts]; n != int64(0) {
		t.Errorf("header %s is %v, want 0", rabbitmq.HeaderAttempts, n)
	}
	c.mustStop(t)

	config.Inbox = &inbox.Inbox{Consumer: "billing", IDOf: func(m inbox.Message) (inbox.ID, error) {
		return inbox.ID{1: 1, 15: byte(m.Sequence)}, nil
	}}
	again := event(1, "k")
	again.MessageId = ""
	b.publish(t, b.queue, again, again)
	c = b.start(config)
	await(t, "both", func() bool { return c.Stats().Duplicates == 1 && c.Stats().Processed == 1 })
	c.mustStop(t)
	if all := b.effects(); !slices.Equal(all, []int64{2, 1}) {
		t.Errorf("effects %v, want 2 and 1", all)
	}
}

// TestDuplicates have no second effect.
func TestDuplicates(t *testing.T) {
	b := newBench(t)
	b.send(1, 20, oneKey)
	b.send(1, 20, oneKey)
	c := b.start(b.config())
	await(t, "all", func() bool { s := c.Stats(); return s.Processed == 20 && s.Duplicates == 20 })
	c.mustStop(t)
	b.checkOnce(b.effects())
	b.checkEmpty()
}

// TestPark puts messages aside in the database, one with an id and one
// without, and the others go on; what was parked can be tried again.
func TestPark(t *testing.T) {
	b := newBench(t)
	nameless := event(4, "k")
	nameless.MessageId = ""
	b.publish(t, b.queue, event(1, "k"), event(2, "k"), event(3, "k"), nameless, event(5, "k"))
	config := b.config()
	config.MaxAttempts = 2
	config.Handler, _ = failing(2, 2)
	c := b.start(config)
	all := b.awaitEffects(3)
	await(t, "two parked messages", func() bool { return c.Stats().Poisoned == 2 })
	c.mustStop(t)
	b.checkEmpty()
	if !slices.Equal(all, []int64{1, 3, 5}) {
		t.Errorf("effects %v, want 1, 3 and 5", all)
	}

	lot := parked.Lot{Inbox: config.Inbox}
	messages, err := lot.List(t.Context(), b.database.Pool, parked.Filter{})
	if err != nil || len(messages) != 2 {
		t.Fatalf("%d parked messages, error %v, want 2", len(messages), err)
	}
	m := messages[0]
	if m.Sequence != 2 || m.Attempts != 2 || !strings.Contains(m.Error, errHandler.Error()) || m.Source.Name != b.queue || string(m.Payload) != `{"n":2}` {
		t.Errorf("parked %+v", m)
	}
	if m := messages[1]; m.Sequence != 4 || m.Attempts != 0 || !strings.Contains(m.Error, inbox.ErrNoID.Error()) {
		t.Errorf("parked %+v", m)
	}
	result, err := lot.Retry(t.Context(), b.database.Pool, m.Number, config.Handler)
	if err != nil || result != inbox.Processed {
		t.Errorf("retry: %s, error %v", result, err)
	}
	b.publish(t, b.queue, event(2, "k"))
	c = b.start(config)
	await(t, "the duplicate", func() bool { return c.Stats().Duplicates == 1 })
	c.mustStop(t)
	b.checkOnce(b.effects())
}

// TestIDOfPanics puts the message aside, and the process goes on.
func TestIDOfPanics(t *testing.T) {
	b := newBench(t)
	b.send(1, 2, oneKey)
	config := b.config()
	config.Inbox = &inbox.Inbox{Consumer: "billing", IDOf: func(m inbox.Message) (inbox.ID, error) {
		if m.Sequence == 1 {
			panic("no such thing")
		}
		return m.ID, nil
	}}
	c := b.start(config)
	b.awaitEffects(1)
	c.mustStop(t)
	if n := b.database.Int(t, `SELECT count(*) FROM inbox_parked WHERE error LIKE '%no such thing%'`); n != 1 {
		t.Errorf("%d parked messages, want 1", n)
	}
}

// TestTrace hands the message's trace to the handler.
func TestTrace(t *testing.T) {
	b := newBench(t)
	m := event(1, "k")
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	m.Headers["traceparent"] = "00-" + id + "-00f067aa0ba902b7-01"
	b.publish(t, b.queue, m)
	traces := make(chan string, 1)
	config := b.config()
	config.Handler = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		traces <- trace.SpanContextFromContext(ctx).TraceID().String()
		return nil
	}
	c := b.start(config)
	if got := <-traces; got != id {
		t.Errorf("trace %s, want %s", got, id)
	}
	c.mustStop(t)
}
