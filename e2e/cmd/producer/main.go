// Command producer is the application of the end-to-end tests that can be
// killed: it commits messages, each with its truth in the same transaction,
// until it is stopped.
package main

import (
	"context"
	"crypto/md5" //nolint:gosec // a checksum among friends
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/outbox"
)

const (
	writers = 4
	keys    = 40
	// pauseMax is between two transactions of a writer, on average half of it.
	pauseMax = 60 * time.Millisecond
	// lingerMax is how long a transaction waits before its commit, so that many
	// are under way when the process is killed.
	lingerMax = 5 * time.Millisecond
)

func main() {
	var p producer
	url := flag.String("database", "", "URL of the database with the outbox and the truth")
	flag.StringVar(&p.topic, "topic", "", "the messages' topic")
	flag.StringVar(&p.process, "process", "", "what the payloads say of who wrote them")
	seed := flag.Uint64("seed", 0, "of everything random")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := p.run(ctx, *url, *seed); err != nil {
		slog.Error("ended", "error", err)
		os.Exit(1)
	}
}

type producer struct {
	topic, process string
	pool           *pgxpool.Pool
}

func (p *producer) run(ctx context.Context, url string, seed uint64) (err error) {
	if p.pool, err = pgxpool.New(context.WithoutCancel(ctx), url); err != nil {
		return err
	}
	defer p.pool.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, writers)
	var group sync.WaitGroup
	for i := range uint64(writers) {
		random := rand.New(rand.NewPCG(seed, i)) //nolint:gosec // repeatable is what is wanted
		group.Go(func() {
			for ctx.Err() == nil {
				// A stop does not cut a transaction short.
				if err := p.transaction(context.WithoutCancel(ctx), random); err != nil {
					errs <- err
					cancel()
					return
				}
				time.Sleep(rand.N(pauseMax))
			}
		})
	}
	group.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// transaction commits one to three messages of a key, or rolls them back.
func (p *producer) transaction(ctx context.Context, random *rand.Rand) error {
	tx, err := p.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }()
	key := fmt.Sprintf("key-%d", random.IntN(keys))
	// The lock has the ids of a key commit in order.
	if _, err := tx.Exec(ctx, `INSERT INTO aggregates VALUES ($1, $2, 1) ON CONFLICT (topic, key) DO UPDATE SET sequence = aggregates.sequence + 1`, p.topic, key); err != nil {
		return err
	}
	for range 1 + random.IntN(3) {
		payload := fmt.Appendf(nil, `{"by":%q,"number":%d}`, p.process, random.Uint64())
		receipts, err := outbox.Insert(ctx, tx, outbox.Message{Topic: p.topic, Key: key, Type: "Tested", Payload: payload})
		if err != nil {
			return err
		}
		digest := md5.Sum(payload) //nolint:gosec // see above
		_, err = tx.Exec(ctx, `INSERT INTO truth (message_id, id, topic, key, digest) VALUES ($1, $2, $3, $4, $5)`,
			[16]byte(receipts[0].MessageID), receipts[0].ID, p.topic, key, digest[:])
		if err != nil {
			return err
		}
	}
	time.Sleep(rand.N(lingerMax))
	if random.IntN(10) == 0 {
		return nil // rolled back
	}
	return tx.Commit(ctx)
}
