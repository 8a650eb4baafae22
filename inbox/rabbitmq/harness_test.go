package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/rabbitmq"
	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/migrations"
)

// bench is what a test of a consumer needs: a queue, and a database with an
// inbox and a table of effects, which has no constraint so that an effect that
// happened twice shows.
type bench struct {
	broker
	t        testing.TB
	queue    string
	database *pgtest.Database
	log      *journal
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := newBroker(t)
	checkLeaks(t)
	return newBenchOn(t, b, b.queue(t, nil))
}

func newBenchOn(t testing.TB, b broker, queue string) *bench {
	t.Helper()
	database := pgtest.New(t)
	migrate(t, database.URL)
	database.Exec(t, `CREATE TABLE effects (at bigint GENERATED ALWAYS AS IDENTITY, n bigint, key text)`)
	return &bench{broker: b, t: t, queue: queue, database: database, log: &journal{t: t}}
}

// migrate makes the inbox.
func migrate(t testing.TB, url string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := (migrations.Target{Schema: "public", Table: "inbox", Set: migrations.Inbox}).Apply(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
}

// config is that of a consumer whose handler writes the effect.
func (b *bench) config() rabbitmq.Config {
	return rabbitmq.Config{
		URLs: []string{b.url}, Queue: b.queue,
		Inbox: &inbox.Inbox{Consumer: "billing"}, DB: b.database.Pool, Handler: effect,
		Backoff: rabbitmq.Backoff{Initial: 5 * time.Millisecond, Max: 100 * time.Millisecond},
		Logger:  slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// effect is a handler's work.
func effect(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	_, err := tx.Exec(ctx, `INSERT INTO effects (n, key) VALUES ($1, $2)`, m.Sequence, string(m.Key))
	return err
}

// effects returns what was committed, in its order.
func (b *bench) effects() []int64 {
	b.t.Helper()
	rows, err := b.database.Pool.Query(context.Background(), `SELECT n FROM effects ORDER BY at`)
	if err != nil {
		b.t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		b.t.Fatal(err)
	}
	return all
}

// send publishes messages from 1 to n; key says which one each has.
func (b *bench) send(from, to int, key func(n int) string) {
	b.t.Helper()
	var all []amqp.Publishing
	for n := from; n <= to; n++ {
		all = append(all, event(n, key(n)))
	}
	b.publish(b.t, b.queue, all...)
}

// oneKey and keys are keys of messages.
func oneKey(int) string { return "k" }

func keys(count int) func(int) string {
	return func(n int) string { return fmt.Sprintf("k%d", n%count) }
}

// awaitEffects waits until there are as many effects, and fails on any that
// happened twice.
func (b *bench) awaitEffects(count int) []int64 {
	b.t.Helper()
	var all []int64
	await(b.t, fmt.Sprintf("%d effects", count), func() bool {
		all = b.effects()
		return len(all) >= count
	})
	b.checkOnce(all)
	return all
}

func (b *bench) checkOnce(all []int64) {
	b.t.Helper()
	seen := make(map[int64]bool)
	for _, n := range all {
		if seen[n] {
			b.t.Errorf("message %d had two effects", n)
		}
		seen[n] = true
	}
}

// awaitEmpty waits until the queue holds nothing and nothing is
// unacknowledged, which shows when the consumer is gone.
func (b *bench) checkEmpty() {
	b.t.Helper()
	if n := b.ready(b.t, b.queue); n != 0 {
		b.t.Errorf("queue %s still has %d messages", b.queue, n)
	}
}

// consumer is one that runs.
type consumer struct {
	*rabbitmq.Consumer
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// start runs a consumer until the test ends or it is stopped.
func (b *bench) start(config rabbitmq.Config) *consumer {
	b.t.Helper()
	made, err := rabbitmq.New(config)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.run(made)
}

// run is start for a consumer that was made.
func (b *bench) run(made *rabbitmq.Consumer) *consumer {
	ctx, cancel := context.WithCancel(context.Background())
	c := &consumer{Consumer: made, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.err = made.Run(ctx)
	}()
	b.t.Cleanup(func() { _ = c.stop(b.t) })
	return c
}

// stop ends the consumer in order and returns what Run did.
func (c *consumer) stop(t testing.TB) error {
	t.Helper()
	c.cancel()
	select {
	case <-c.done:
	case <-time.After(patience):
		t.Fatalf("Run did not return within %s", patience)
	}
	return c.err
}

// mustStop is stop for a consumer that must end without an error.
func (c *consumer) mustStop(t testing.TB) {
	t.Helper()
	if err := c.stop(t); err != nil {
		t.Errorf("Run: %v", err)
	}
}

// journal is a log that a test can look into.
type journal struct {
	t     testing.TB
	mu    sync.Mutex
	lines []string
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, strings.TrimSpace(string(p)))
	j.t.Logf("%s", p)
	return len(p), nil
}

// count returns the number of lines that contain all the texts.
func (j *journal) count(texts ...string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
lines:
	for _, line := range j.lines {
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue lines
			}
		}
		n++
	}
	return n
}

// checkLeaks fails the test when goroutines of the package or of the client
// outlive it. Call it first.
func checkLeaks(t testing.TB) {
	t.Cleanup(func() {
		var leaked []string
		deadline := time.Now().Add(patience)
		for {
			leaked = nil
			buffer := make([]byte, 4<<20)
			for stack := range strings.SplitSeq(string(buffer[:runtime.Stack(buffer, true)]), "\n\n") {
				if strings.Contains(stack, "inbox/rabbitmq.(") || strings.Contains(stack, "amqp091-go.") && !strings.Contains(stack, "_test.") {
					leaked = append(leaked, stack)
				}
			}
			if len(leaked) == 0 || time.Now().After(deadline) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if len(leaked) > 0 {
			t.Errorf("%d goroutines are left:\n%s", len(leaked), strings.Join(leaked, "\n\n"))
		}
	})
}

// hooked lets a test act around the commits of a pool's transactions.
type hooked struct {
	*pgxpool.Pool
	before, after func()
}

type hookedTx struct {
	pgx.Tx
	hooked *hooked
}

func (h *hooked) Begin(ctx context.Context) (pgx.Tx, error) {
	tx, err := h.Pool.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &hookedTx{Tx: tx, hooked: h}, nil
}

func (tx *hookedTx) Commit(ctx context.Context) error {
	if tx.hooked.before != nil {
		tx.hooked.before()
	}
	err := tx.Tx.Commit(ctx)
	if err == nil && tx.hooked.after != nil {
		tx.hooked.after()
	}
	return err
}

var errHandler = errors.New("no such customer")
