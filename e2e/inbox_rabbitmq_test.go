package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/inbox"
	inboxrabbitmq "github.com/outboxrelay/relay/inbox/rabbitmq"
)

// inboxKeys is how many keys the messages have.
const inboxKeys = 50

// rabbitInbox is a queue with messages, and a database for their effects.
type rabbitInbox struct {
	inboxStage
	url, queue string
	// channel publishes; nil before the first message.
	channel *amqp.Channel
}

// newRabbitInbox makes a queue of the kind and the stage.
func newRabbitInbox(t *testing.T, postgres, rabbit, kind string) *rabbitInbox {
	t.Helper()
	return makeRabbitInbox(t, postgres, rabbit, amqp.Table{"x-queue-type": kind})
}

// newOrderedRabbitInbox has a queue that keeps its order when a connection is
// lost: for a moment the broker may see the lost consumer and the new one.
func newOrderedRabbitInbox(t *testing.T, postgres, rabbit, kind string) *rabbitInbox {
	t.Helper()
	return makeRabbitInbox(t, postgres, rabbit, amqp.Table{"x-queue-type": kind, "x-single-active-consumer": true})
}

func makeRabbitInbox(t *testing.T, postgres, rabbit string, arguments amqp.Table) *rabbitInbox {
	t.Helper()
	b := &rabbitInbox{inboxStage: newInboxStage(t, postgres), url: rabbit, queue: fmt.Sprintf("inbox-%s-%d", arguments["x-queue-type"], time.Now().UnixNano())}
	_, err := channelTo(t, rabbit).QueueDeclare(b.queue, true, false, false, false, arguments)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// publish puts n more messages into the queue, as the relay does: one of a key
// is not sent before the one before it is confirmed.
func (b *rabbitInbox) publish(n int) {
	b.t.Helper()
	for n > 0 {
		wave := make([]int, min(n, inboxKeys)) // each of another key
		for i := range wave {
			b.published++
			wave[i] = b.published
		}
		n -= len(wave)
		b.await("confirms", func() bool {
			wave = b.send(wave)
			return len(wave) == 0
		})
	}
}

// send publishes messages and returns those that were not confirmed: a quorum
// queue without a leader refuses.
func (b *rabbitInbox) send(messages []int) (failed []int) {
	b.t.Helper()
	if b.channel == nil || b.channel.IsClosed() {
		if b.channel = channelTo(b.t, b.url); b.channel.Confirm(false) != nil {
			return messages
		}
	}
	confirms := make(map[int]*amqp.DeferredConfirmation)
	for _, n := range messages {
		confirm, err := b.channel.PublishWithDeferredConfirm("", b.queue, true, false, amqp.Publishing{
			MessageId: messageID(n), Type: "OrderPlaced", Timestamp: time.Now(),
			ContentType: "application/json", DeliveryMode: amqp.Persistent,
			Headers: amqp.Table{"message-sequence": int64(n), "message-key": fmt.Sprint("order-", n%inboxKeys)},
		})
		if err == nil {
			confirms[n] = confirm
		}
	}
	for _, n := range messages {
		if confirm := confirms[n]; confirm == nil || !confirm.Wait() {
			failed = append(failed, n)
		}
	}
	return failed
}

// checkEmpty demands that nothing is left, unacknowledged messages included;
// call it when no consumer runs.
func (b *rabbitInbox) checkEmpty() {
	b.t.Helper()
	state, err := channelTo(b.t, b.url).QueueDeclarePassive(b.queue, true, false, false, false, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	if state.Messages != 0 {
		b.t.Errorf("%d messages are left in the queue", state.Messages)
	}
}

// TestInboxRabbitMQKilled lets consumers kill themselves, each time right after
// the database has committed and before the message is acknowledged.
func TestInboxRabbitMQKilled(t *testing.T) {
	t.Parallel()
	environment := servers.FromEnvironment()
	for _, test := range []struct {
		name, kind           string
		processes            int
		concurrency, batch   int
		crash                float64
		messages, leastKills int
	}{
		{"one by one", "classic", 1, 3, 0, 0.02, 1500, 10},
		{"batches", "quorum", 1, 1, 20, 0.1, 3000, 5},
		// Two processes share the queue, so that no order is promised.
		{"two processes", "classic", 2, 2, 0, 0.02, 1500, 10},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newRabbitInbox(t, environment.PostgresURL, environment.RabbitMQURL, test.kind)
			b.publish(test.messages)
			finished := func() bool { return b.done() == b.published && b.idle() }
			b.mortals(test.processes, test.leastKills, finished, "--broker", "rabbitmq", "--database", b.database.URL,
				"--url", b.url, "--source", b.queue, "--concurrency", strconv.Itoa(test.concurrency),
				"--batch", strconv.Itoa(test.batch), "--crash", fmt.Sprint(test.crash))
			b.check(test.processes == 1)
			b.checkEmpty()
		})
	}
}

// idle reports that nothing waits in the queue. After a kill what was
// acknowledged by nobody is in it again, to be recognised as duplicates.
func (b *rabbitInbox) idle() bool {
	connection, err := amqp.Dial(b.url)
	if err != nil {
		return false
	}
	defer func() { _ = connection.Close() }()
	channel, err := connection.Channel()
	if err != nil {
		return false
	}
	state, err := channel.QueueDeclarePassive(b.queue, true, false, false, false, nil)
	return err == nil && state.Messages == 0
}

// TestInboxRabbitMQFaults breaks the broker under a consumer, which has to go on
// by itself.
func TestInboxRabbitMQFaults(t *testing.T) {
	t.Parallel()
	node := startRabbit(t, servers.RabbitMQOptions{})
	postgres := servers.FromEnvironment().PostgresURL
	// RabbitMQ 3.10 does not find a queue again whose metadata were not flushed
	// before the kill. A stop flushes them; those of quorum queues, not all. So
	// this one is there before the restart.
	flushed := newOrderedRabbitInbox(t, postgres, node.URL("/"), "classic")
	restarted := false
	restart := func(ctx context.Context) error {
		restarted = true
		return errors.Join(node.Stop(), node.Start(ctx))
	}
	for _, test := range []struct {
		name  string
		stage *rabbitInbox // nil: one with a quorum queue
		times int
		fault func(ctx context.Context) error
	}{
		{"connections closed", nil, 4, func(ctx context.Context) error {
			return node.CloseAllConnections(ctx, "as tested")
		}},
		{"broker restarted", nil, 1, restart},
		{"broker killed", flushed, 1, func(ctx context.Context) error {
			node.Kill()
			return node.Start(ctx)
		}},
		{"broker frozen", nil, 1, func(ctx context.Context) error {
			if err := node.Pause(); err != nil {
				return err
			}
			select { // longer than three heartbeats, of one second in this test
			case <-time.After(8 * time.Second):
			case <-ctx.Done():
			}
			return node.Resume()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := test.stage
			if b == nil {
				b = newOrderedRabbitInbox(t, postgres, node.URL("/"), "quorum")
			} else if b.t = t; !restarted { // run by itself
				try(t, restart(t.Context()))
			}
			b.survive(test.times, test.fault)
		})
	}
}

// TestInboxRabbitMQDatabaseFaults does the same with the database.
func TestInboxRabbitMQDatabaseFaults(t *testing.T) {
	t.Parallel()
	postgres, err := servers.StartPostgres(t.Context(), servers.PostgresOptions{})
	try(t, err)
	servers.CleanUp(t, postgres)
	for _, test := range []struct {
		name  string
		fault func(ctx context.Context) error
	}{
		{"restarted", postgres.Restart},
		{"crashed", func(ctx context.Context) error {
			postgres.Kill()
			return postgres.Start(ctx)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			newOrderedRabbitInbox(t, postgres.URL("postgres"), servers.FromEnvironment().RabbitMQURL, "quorum").survive(3, test.fault)
		})
	}
}

// survive has a consumer at work while a fault happens, so many times, and
// demands that all messages have their effect in the end, and that none is
// blamed for the fault.
func (b *rabbitInbox) survive(times int, fault func(ctx context.Context) error) {
	t := b.t
	t.Helper()
	b.publish(300)
	pool, err := pgxpool.New(t.Context(), b.database.URL)
	try(t, err)
	defer pool.Close()
	log := new(lockedLog)
	consumer, err := inboxrabbitmq.New(inboxrabbitmq.Config{
		URLs: []string{b.url + "?heartbeat=1"}, Queue: b.queue, Inbox: &inbox.Inbox{Consumer: "billing"}, DB: pool,
		Concurrency: 3, MaxAttempts: 1,
		Backoff: inboxrabbitmq.Backoff{Initial: 50 * time.Millisecond, Max: time.Second},
		Logger:  log.logger(),
		Handler: insertEffect,
	})
	try(t, err)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- consumer.Run(ctx) }()
	for range times {
		before := b.done()
		b.publish(200)
		b.await("progress", func() bool { return b.done() > before })
		try(t, fault(ctx))
	}
	b.publish(100)
	b.await("all effects", func() bool { return b.done() == b.published })
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	stats := consumer.Stats()
	t.Logf("%+v", stats)
	if stats.Failures != 0 || stats.Poisoned != 0 {
		t.Errorf("%d attempts failed and %d messages were put aside: the outage was blamed on them\n%s", stats.Failures, stats.Poisoned, log)
	}
	b.check(true)
	b.checkEmpty()
}
