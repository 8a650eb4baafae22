// Command consumer is the consuming application of the end-to-end tests: it
// writes each message's effect through the inbox, serves metrics, and can be
// told to kill itself at the worst of moments, after the database has committed
// and before the broker hears of it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/inbox"
)

// options are the command line's.
type options struct {
	database, url, source, name string
	concurrency, batch          int
	crash                       float64
	poison                      int64
	session                     time.Duration
	observer                    inbox.Observer
}

// inbox is the consumer's.
func (o options) inbox() *inbox.Inbox { return &inbox.Inbox{Consumer: o.name, Observer: o.observer} }

// maxAttempts is how often the message is tried that is poison.
const maxAttempts = 3

// brokers are what consume from each, until ctx ends.
var brokers = map[string]func(ctx context.Context, o options, db inbox.Beginner) error{
	"kafka":    consumeKafka,
	"rabbitmq": consumeRabbitMQ,
}

func main() {
	var o options
	broker := flag.String("broker", "", strings.Join(slices.Sorted(maps.Keys(brokers)), " or "))
	flag.StringVar(&o.database, "database", "", "URL of the database with the inbox and the table effects")
	flag.StringVar(&o.url, "url", "", "URL of RabbitMQ, or Kafka's brokers, separated by commas")
	flag.StringVar(&o.source, "source", "", "the queue or topic")
	flag.StringVar(&o.name, "name", "consumer", "the inbox's consumer, and the group")
	flag.IntVar(&o.concurrency, "concurrency", 1, "handlers at a time")
	flag.IntVar(&o.batch, "batch", 0, "messages in one transaction; 0: one by one")
	flag.Float64Var(&o.crash, "crash", 0, "probability of a SIGKILL after a commit")
	flag.DurationVar(&o.session, "session", 1500*time.Millisecond,
		"how long a Kafka group waits for a dead member; brokers allow less than 6s by group.min.session.timeout.ms")
	flag.Int64Var(&o.poison, "poison", 0, "sequence of the message whose handler fails; 0: none")
	serve := flag.Bool("metrics", false, "serve /metrics on a free port, which the log names")
	flag.Parse()
	consume := brokers[*broker]
	if consume == nil {
		fmt.Fprintf(os.Stderr, "--broker %q is not known\n", *broker)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if *serve {
		address, err := serveMetrics(&o)
		if err != nil {
			slog.Error("cannot serve metrics", "error", err)
			os.Exit(1)
		}
		slog.Info("serving", "metrics", address)
	}
	pool, err := pgxpool.New(context.WithoutCancel(ctx), o.database)
	if err == nil {
		err = consume(ctx, o, &mortal{pool, o.crash})
		pool.Close()
	}
	if err != nil {
		slog.Error("ended", "error", err)
		os.Exit(1)
	}
}

var errPoison = errors.New("the handler is to fail for this message")

// effect is the handler. Nothing refuses a second row of a message.
func (o options) effect(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	if m.Sequence == o.poison && o.poison > 0 {
		return errPoison
	}
	_, err := tx.Exec(ctx, `INSERT INTO effects (message_id, sequence, key) VALUES ($1, $2, $3)`, m.ID.String(), m.Sequence, string(m.Key))
	return err
}

// effects is the handler of batches.
func (o options) effects(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
	for _, m := range fresh {
		if err := o.effect(ctx, tx, m); err != nil {
			return err
		}
	}
	return nil
}

// mortal is a database after whose commits the process may die.
type mortal struct {
	*pgxpool.Pool
	crash float64
}

// Begin implements inbox.Beginner.
func (m *mortal) Begin(ctx context.Context) (pgx.Tx, error) {
	tx, err := m.Pool.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &lastTx{tx, m.crash}, nil
}

type lastTx struct {
	pgx.Tx
	crash float64
}

// Commit implements pgx.Tx.
func (tx *lastTx) Commit(ctx context.Context) error {
	err := tx.Tx.Commit(ctx)
	if err == nil && rand.Float64() < tx.crash {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // nothing more happens until the signal arrives
	}
	return err
}
