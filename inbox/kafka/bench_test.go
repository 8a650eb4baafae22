package kafka_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/kafka"
)

// BenchmarkConsumer measures messages/s from a topic's backlog, each with one
// row as its effect: one message a transaction and batches, one partition and
// four, in order and by key. Run it with -benchtime 1x.
func BenchmarkConsumer(b *testing.B) {
	for _, bench := range []struct {
		partitions, concurrency, batch, messages int
	}{
		{1, 1, 0, 20_000}, {1, 16, 0, 60_000}, {4, 1, 0, 40_000}, {4, 4, 0, 60_000},
		{1, 1, 100, 150_000}, {4, 1, 100, 200_000}, {1, 4, 500, 200_000}, {4, 1, 500, 200_000},
	} {
		b.Run(fmt.Sprintf("partitions=%d/concurrency=%d/batch=%d", bench.partitions, bench.concurrency, bench.batch), func(b *testing.B) {
			s := newStage(b, bench.partitions)
			s.publishKeys(bench.messages, bench.partitions, 64)
			pool := s.db.Pool.Config()
			pool.MaxConns = 16
			config := s.config(effect)
			config.DB, config.Logger = newPool(b, pool), slog.New(slog.DiscardHandler)
			config.CommitInterval, config.FetchWait = 0, 0
			config.Concurrency = bench.concurrency
			if bench.batch > 0 {
				config.Handler, config.BatchHandler, config.BatchSize = nil, effects, bench.batch
			}
			for b.Loop() {
				s.measure(b, config, bench.messages)
			}
		})
	}
}

// measure consumes all messages once and reports the rate, without the start.
func (s *stage) measure(b *testing.B, config kafka.Config, messages int) {
	s.db.Exec(b, `TRUNCATE inbox, effects`)
	config.Group += "x"
	c := start(b, config)
	for c.Stats().Processed == 0 {
		time.Sleep(time.Millisecond)
	}
	began, first := time.Now(), c.Stats().Processed
	for c.Stats().Processed < int64(messages) {
		time.Sleep(time.Millisecond)
	}
	b.ReportMetric(float64(int64(messages)-first)/time.Since(began).Seconds(), "messages/s")
	c.mustStop()
}

// effects is what a handler of batches does: one statement.
func effects(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
	ids, partitions, offsets := make([]string, len(fresh)), make([]int32, len(fresh)), make([]int64, len(fresh))
	for n, m := range fresh {
		ids[n], partitions[n], offsets[n] = m.ID.String(), m.Source.Partition, m.Source.Offset
	}
	_, err := tx.Exec(ctx, `INSERT INTO effects (message_id, partition, "offset") SELECT * FROM unnest($1::text[], $2::int[], $3::bigint[])`, ids, partitions, offsets)
	return err
}
