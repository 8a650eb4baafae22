package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/metrics"
	"github.com/outboxrelay/relay/internal/operator"
	"github.com/outboxrelay/relay/internal/source"
)

const (
	// backlogInterval is how often the metrics of what waits are read.
	backlogInterval = 5 * time.Second
	// backlogShare bounds the share of time that this takes: one part in so many.
	backlogShare = 50
	// backlogTimeout bounds one reading.
	backlogTimeout = 30 * time.Second
)

// backlogMeter reads what waits and tells the metrics.
type backlogMeter struct {
	pool          *pgxpool.Pool
	schema, table string
	estimator     *source.Estimator
	metrics       *metrics.Relay
	logger        *slog.Logger
}

func newBacklogMeter(pool *pgxpool.Pool, c *config.Config, m *metrics.Relay, logger *slog.Logger) *backlogMeter {
	return &backlogMeter{
		pool: pool, schema: c.Outbox.Schema, table: c.Outbox.Table, metrics: m, logger: logger,
		estimator: source.NewEstimator(pool, c.Outbox.Schema, c.Outbox.Table),
	}
}

// run reads until ctx ends.
func (b *backlogMeter) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		err := b.read(ctx)
		if err != nil && ctx.Err() == nil {
			// The loop needs the same tables, and says once what is wrong with them.
			b.logger.Debug("the backlog cannot be read; its metrics stand still", "error", err)
		}
		timer.Reset(max(backlogInterval, backlogShare*time.Since(began)))
	}
}

func (b *backlogMeter) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, backlogTimeout)
	defer cancel()
	pending, err := b.estimator.Estimate(ctx)
	if err != nil {
		return err
	}
	conn, err := b.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	failures, err := operator.ReadFailures(ctx, conn.Conn(), b.schema, b.table)
	if err != nil {
		return err
	}
	var backlog []metrics.TopicBacklog
	for _, t := range mergeTopics(pending, failures) {
		backlog = append(backlog, metrics.TopicBacklog{
			Topic: t.Topic, Pending: t.Pending, OldestAge: t.OldestPendingAge, ParkedKeys: t.ParkedKeys, DeadLetters: t.DeadLetters,
		})
	}
	b.metrics.Backlog(time.Now(), backlog)
	return nil
}
