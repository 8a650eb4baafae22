// Command effects is the consumer of the end-to-end tests: its handler writes a
// row into the table effects for each message that it gets. It can be told to
// die between the commit of its database and the acknowledgement at the
// broker, to have handlers that fail, and to go without the inbox.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/outbox"
)

// options are the command line's.
type options struct {
	database, process, name string
	kafka, topics           list
	rabbitmq                string
	batch                   int
	concurrency             int
	crashEvery, failPercent int
	withoutInbox, requeue   bool
	seed                    uint64
}

// list is a flag that may be repeated.
type list []string

func (l *list) String() string { return fmt.Sprint([]string(*l)) }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

func main() {
	var o options
	flag.StringVar(&o.database, "database", "", "URL of the database with the inbox and the table effects")
	flag.StringVar(&o.process, "process", "", "what the effects say of who had them")
	flag.StringVar(&o.name, "consumer", "effects", "the inbox's consumer, and the Kafka group")
	flag.Var(&o.kafka, "kafka", "a broker's address")
	flag.Var(&o.topics, "topic", "a Kafka topic, or the RabbitMQ queue")
	flag.StringVar(&o.rabbitmq, "rabbitmq", "", "URL of RabbitMQ")
	flag.IntVar(&o.batch, "batch", 0, "messages in a transaction at most; 0: one, by the handler for one")
	flag.IntVar(&o.concurrency, "concurrency", 1, "transactions side by side")
	flag.IntVar(&o.crashEvery, "crash-every", 0, "die after a commit, after 1 to twice as many; 0: never")
	flag.IntVar(&o.failPercent, "fail-percent", 0, "how many of the handler's calls fail")
	flag.BoolVar(&o.requeue, "requeue", false, "give failed messages back to the queue (RabbitMQ)")
	flag.BoolVar(&o.withoutInbox, "without-inbox", false, "handle every delivery")
	flag.Uint64Var(&o.seed, "seed", 0, "of everything random")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		slog.Error("ended", "error", err)
		os.Exit(1)
	}
}

// runner is a consumer of either broker.
type runner interface {
	Run(ctx context.Context) error
}

func run(ctx context.Context, o options) error {
	random := rand.New(rand.NewPCG(o.seed, 0)) //nolint:gosec // repeatable is what is wanted
	e := &effects{options: o, crasher: newCrasher(o.crashEvery, random), random: random}
	config, err := pgxpool.ParseConfig(o.database)
	if err != nil {
		return err
	}
	config.MaxConns = max(8, int32(o.concurrency)+2)
	config.ConnConfig.Tracer = e.crasher
	if e.db, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}
	defer e.db.Close()
	consumer, err := e.consumer()
	if err != nil {
		return err
	}
	return consumer.Run(ctx)
}

// effects are what the handlers have.
type effects struct {
	options
	db      *pgxpool.Pool
	crasher *crasher
	// sent are the producer's ids by those that stand in for them.
	sent sync.Map

	mu     sync.Mutex
	random *rand.Rand
}

// inbox is the consumer's. Without one each delivery is a new message.
func (e *effects) inbox() *inbox.Inbox {
	in := &inbox.Inbox{Consumer: e.name}
	if e.withoutInbox {
		in.IDOf = func(message inbox.Message) (inbox.ID, error) {
			id := inbox.ID(outbox.NewUUID())
			e.sent.Store(id, message.ID)
			return id, nil
		}
	}
	return in
}

var errWanted = errors.New("this handler is to fail now")

// handle has the effect, and fails at times.
func (e *effects) handle(ctx context.Context, tx pgx.Tx, message inbox.Message) error {
	id := message.ID
	if sent, ok := e.sent.Load(id); ok {
		id = sent.(inbox.ID)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO effects (message_id, process) VALUES ($1, $2)`, id.String(), e.process); err != nil {
		return err
	}
	e.crasher.touch()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.random.IntN(100) < e.failPercent {
		return errWanted
	}
	return nil
}

func (e *effects) handleBatch(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
	for _, message := range fresh {
		if err := e.handle(ctx, tx, message); err != nil {
			return err
		}
	}
	return nil
}
