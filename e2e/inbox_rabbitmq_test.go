package e2e_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/e2e/child"
	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/inbox"
	inboxrabbitmq "github.com/outboxrelay/relay/inbox/rabbitmq"
	"github.com/outboxrelay/relay/migrations"
)

// inboxLimit bounds what a consumer has to do in these tests.
const inboxLimit = 4 * time.Minute

// inboxKeys is how many keys the messages have.
const inboxKeys = 50

// rabbitInbox is a queue with messages, and a database for their effects.
type rabbitInbox struct {
	t          *testing.T
	url, queue string
	database   *scenario.Database
	published  int
	// channel publishes; nil before the first message.
	channel *amqp.Channel
}

// newRabbitInbox makes a queue of the kind and a database with an inbox. Of
// the effects nothing refuses a second one of a message.
func newRabbitInbox(t *testing.T, postgres, rabbit, kind string) *rabbitInbox {
	t.Helper()
	b := &rabbitInbox{t: t, url: rabbit, queue: fmt.Sprintf("inbox-%s-%d", kind, time.Now().UnixNano()), database: scenario.NewDatabaseOn(t, postgres)}
	_, err := channelTo(t, rabbit).QueueDeclare(b.queue, true, false, false, false, amqp.Table{"x-queue-type": kind})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), b.database.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := (migrations.Target{Schema: "public", Table: "inbox", Set: migrations.Inbox}).Apply(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
	b.database.Exec(t, `CREATE TABLE effects (at bigint GENERATED ALWAYS AS IDENTITY, message_id text, sequence bigint, key text)`)
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
			MessageId: fmt.Sprintf("00000000-0000-7000-8000-%012d", n), Type: "OrderPlaced",
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

// done counts the messages that had an effect.
func (b *rabbitInbox) done() (n int) {
	// The database may be away.
	ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Second)
	defer cancel()
	_ = b.database.Pool.QueryRow(ctx, `SELECT count(DISTINCT message_id) FROM effects`).Scan(&n)
	return n
}

// check demands one effect of each message, in the order of its key.
func (b *rabbitInbox) check(ordered bool) {
	b.t.Helper()
	type row struct {
		Sequence int64
		Key      string
	}
	rows, err := b.database.Pool.Query(b.t.Context(), `SELECT sequence, key FROM effects ORDER BY at`)
	if err != nil {
		b.t.Fatal(err)
	}
	effects, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		b.t.Fatal(err)
	}
	seen := make(map[int64]bool)
	highest := make(map[string]int64)
	for _, e := range effects {
		if seen[e.Sequence] {
			b.t.Errorf("message %d had its effect again", e.Sequence)
		}
		if ordered && e.Sequence < highest[e.Key] {
			b.t.Errorf("key %s: the effect of %d came after that of %d", e.Key, e.Sequence, highest[e.Key])
		}
		seen[e.Sequence] = true
		highest[e.Key] = max(highest[e.Key], e.Sequence)
	}
	if len(seen) != b.published {
		b.t.Errorf("%d messages had an effect, %d were published", len(seen), b.published)
	}
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

// buildConsumer makes e2e/cmd/consumer once.
var buildConsumer = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "outbox-relay-consumer-")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "consumer")
	if output, err := exec.Command("go", "build", "-o", binary, "./cmd/consumer").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the consumer: %w\n%s", err, output)
	}
	return binary, nil
})

// TestInboxRabbitMQKilled lets consumers kill themselves, each time right after
// the database has committed and before the message is acknowledged.
func TestInboxRabbitMQKilled(t *testing.T) {
	t.Parallel()
	binary, err := buildConsumer()
	if err != nil {
		t.Fatal(err)
	}
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
			ctx, cancel := context.WithTimeout(t.Context(), inboxLimit)
			defer cancel()
			var group sync.WaitGroup
			kills := make([]int, test.processes)
			for i := range test.processes {
				group.Go(func() {
					kills[i] = consumeUntilDone(ctx, b, exec.Command(binary, "--broker", "rabbitmq", "--database", b.database.URL,
						"--url", b.url, "--source", b.queue, "--concurrency", strconv.Itoa(test.concurrency),
						"--batch", strconv.Itoa(test.batch), "--crash", fmt.Sprint(test.crash)), filepath.Join(t.TempDir(), "consumer.log"))
				})
			}
			group.Wait()
			total := 0
			for _, n := range kills {
				total += n
			}
			t.Logf("%d kills", total)
			if total < test.leastKills {
				t.Errorf("%d kills, want at least %d", total, test.leastKills)
			}
			b.check(test.processes == 1)
			b.checkEmpty()
		})
	}
}

// consumeUntilDone runs the process, and again whenever it has killed itself,
// until all messages had an effect and none is left in the queue. It returns
// the number of kills.
func consumeUntilDone(ctx context.Context, b *rabbitInbox, command *exec.Cmd, log string) (kills int) {
	for {
		life, err := child.Start(exec.Command(command.Path, command.Args[1:]...), log)
		if err != nil {
			b.t.Error(err)
			return kills
		}
		for life.Running() {
			if ctx.Err() != nil {
				life.Kill()
				b.t.Errorf("not within %s: %d of %d messages had an effect\n%s", inboxLimit, b.done(), b.published, life.Tail(20))
				return kills
			}
			if b.done() == b.published {
				// In order: what it still has is acknowledged.
				life.Signal(syscall.SIGTERM)
			}
			life.Wait(50 * time.Millisecond)
		}
		status, _ := life.Command.ProcessState.Sys().(syscall.WaitStatus)
		switch {
		case status.Signaled() && status.Signal() == syscall.SIGKILL:
			kills++
		case life.Err() != nil:
			b.t.Errorf("the consumer ended: %v\n%s", life.Err(), life.Tail(20))
			return kills
		case b.done() == b.published && b.idle():
			return kills
		}
	}
}

// idle reports that the queue is empty. After a kill what was acknowledged by
// nobody is in it again, to be recognised as duplicates.
func (b *rabbitInbox) idle() bool {
	state, err := channelTo(b.t, b.url).QueueDeclarePassive(b.queue, true, false, false, false, nil)
	return err == nil && state.Messages == 0
}

// TestInboxRabbitMQFaults breaks the servers under a consumer, which has to go
// on by itself.
func TestInboxRabbitMQFaults(t *testing.T) {
	t.Parallel()
	node := startRabbit(t, servers.RabbitMQOptions{})
	postgres, err := servers.StartPostgres(t.Context(), servers.PostgresOptions{})
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, postgres)
	for _, test := range []struct {
		name string
		kind string
		// flushed: the node is stopped and started when the queue is declared.
		flushed bool
		times   int
		fault   func(ctx context.Context) error
	}{
		{name: "connections closed", times: 8, fault: func(ctx context.Context) error {
			return node.CloseAllConnections(ctx, "as tested")
		}},
		{name: "database restarted", times: 3, fault: postgres.Restart},
		{name: "database crashed", times: 3, fault: func(ctx context.Context) error {
			postgres.Kill()
			return postgres.Start(ctx)
		}},
		{name: "broker restarted", times: 1, fault: func(ctx context.Context) error {
			if err := node.Stop(); err != nil {
				return err
			}
			return node.Start(ctx)
		}},
		// RabbitMQ 3.10 does not find a queue again whose metadata were not flushed
		// before the kill. A stop flushes them; those of quorum queues, not all.
		{name: "broker killed", kind: "classic", flushed: true, times: 1, fault: func(ctx context.Context) error {
			node.Kill()
			return node.Start(ctx)
		}},
		{name: "broker frozen", times: 1, fault: func(ctx context.Context) error {
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
			b := newRabbitInbox(t, postgres.URL("postgres"), node.URL("/"), cmp.Or(test.kind, "quorum"))
			if test.flushed {
				try(t, errors.Join(node.Stop(), node.Start(t.Context())))
			}
			b.publish(300)
			pool, err := pgxpool.New(t.Context(), b.database.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			log := new(lockedLog)
			consumer, err := inboxrabbitmq.New(inboxrabbitmq.Config{
				URLs: []string{b.url + "?heartbeat=1"}, Queue: b.queue, Inbox: &inbox.Inbox{Consumer: "billing"}, DB: pool,
				Concurrency: 3, MaxAttempts: 1,
				Backoff: inboxrabbitmq.Backoff{Initial: 50 * time.Millisecond, Max: time.Second},
				Logger:  slog.New(slog.NewTextHandler(log, nil)),
				Handler: func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
					_, err := tx.Exec(ctx, `INSERT INTO effects (message_id, sequence, key) VALUES ($1, $2, $3)`, m.ID.String(), m.Sequence, string(m.Key))
					return err
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			ended := make(chan error, 1)
			go func() { ended <- consumer.Run(ctx) }()
			for range test.times {
				before := b.done()
				b.publish(200)
				b.await("progress", func() bool { return b.done() > before })
				if err := test.fault(ctx); err != nil {
					t.Fatal(err)
				}
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
		})
	}
}

// await polls until the condition holds.
func (b *rabbitInbox) await(what string, condition func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(inboxLimit); !condition(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("not within %s: %s; %d of %d messages had an effect", inboxLimit, what, b.done(), b.published)
		}
	}
}

// lockedLog is a log that may be read while it is written.
type lockedLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
