package rabbitmq_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/inbox"
)

// BenchmarkConsumer measures messages/s from a queue's backlog, each with one row
// as its effect: one message a transaction and batches, in order and by key. Run
// it with -benchtime 1x.
func BenchmarkConsumer(b *testing.B) {
	for _, bench := range []struct{ concurrency, batch, messages int }{
		{1, 0, 20_000}, {16, 0, 40_000}, {1, 100, 60_000}, {4, 500, 100_000},
	} {
		b.Run(fmt.Sprintf("concurrency=%d/batch=%d", bench.concurrency, bench.batch), func(b *testing.B) {
			s := newBench(b)
			settings := s.database.Pool.Config()
			settings.MaxConns = 16
			pool, err := pgxpool.NewWithConfig(b.Context(), settings)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(pool.Close)
			config := s.config()
			config.DB, config.Concurrency, config.Logger = pool, bench.concurrency, slog.New(slog.DiscardHandler)
			if bench.batch > 0 {
				config.Handler, config.BatchHandler, config.BatchSize = nil, insertAll, bench.batch
			}
			for b.Loop() {
				for first := 1; first <= bench.messages; first += 1000 {
					all := make([]amqp.Publishing, 0, 1000)
					for n := first; n < first+1000; n++ {
						all = append(all, event(n, fmt.Sprint("k", n%64)))
					}
					s.publish(b, s.queue, all...)
				}
				c := s.start(config)
				for c.Stats().Processed == 0 {
					time.Sleep(time.Millisecond)
				}
				began, done := time.Now(), c.Stats().Processed
				for c.Stats().Processed < int64(bench.messages) {
					time.Sleep(time.Millisecond)
				}
				b.ReportMetric(float64(int64(bench.messages)-done)/time.Since(began).Seconds(), "messages/s")
				c.mustStop(b)
			}
		})
	}
}

// insertAll is what a handler of batches does: one statement.
func insertAll(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
	sequences, names := make([]int64, len(fresh)), make([]string, len(fresh))
	for n, m := range fresh {
		sequences[n], names[n] = m.Sequence, string(m.Key)
	}
	_, err := tx.Exec(ctx, `INSERT INTO effects (n, key) SELECT * FROM unnest($1::bigint[], $2::text[])`, sequences, names)
	return err
}
