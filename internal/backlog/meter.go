// Package backlog keeps the metrics of what waits.
package backlog

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/metrics"
	"github.com/outboxrelay/relay/internal/operator"
	"github.com/outboxrelay/relay/internal/source"
)

const (
	// interval is how often the backlog is read.
	interval = 5 * time.Second
	// share bounds the share of time that this takes: one part in so many.
	share = 50
	// timeout bounds one reading.
	timeout = 30 * time.Second
)

// reportedByTheRelay are the kinds of problems that keep the relay from working too,
// which says what is wrong.
var reportedByTheRelay = []string{"unreachable", "connection_lost", "restarting", "host_not_found", "authentication", "read_only", "missing_table", "tls",
	"server_version", "missing_database", "too_many_connections"}

// Meter reads what waits in one outbox.
type Meter struct {
	pool          *pgxpool.Pool
	schema, table string
	estimator     *source.Estimator
	metrics       *metrics.Relay
	logger        *slog.Logger
}

// NewMeter returns a Meter that sets the metrics.
func NewMeter(pool *pgxpool.Pool, schema, table string, m *metrics.Relay, logger *slog.Logger) *Meter {
	return &Meter{
		pool: pool, schema: schema, table: table, metrics: m, logger: logger,
		estimator: source.NewEstimator(pool, schema, table),
	}
}

// Run reads until ctx ends.
func (m *Meter) Run(ctx context.Context) {
	failing := "" // the kind of what is wrong
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		err := m.Read(ctx)
		if err != nil && ctx.Err() == nil {
			problem := source.Explain(err)
			level := slog.LevelWarn
			if problem.Kind == failing || slices.Contains(reportedByTheRelay, problem.Kind) {
				level = slog.LevelDebug
			}
			failing = problem.Kind
			m.logger.Log(ctx, level, "the backlog cannot be read; its metrics stand still", "error", err, "remedy", problem.Remedy)
		} else if err == nil {
			failing = ""
		}
		timer.Reset(max(interval, share*time.Since(began)))
	}
}

// Read reads once.
func (m *Meter) Read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	pending, err := m.estimator.Estimate(ctx)
	if err != nil {
		return err
	}
	conn, err := m.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	failures, err := operator.ReadFailures(ctx, conn.Conn(), m.schema, m.table)
	if err != nil {
		return err
	}
	var topics []metrics.TopicBacklog // one may be there twice: they are added up
	for _, p := range pending {
		topics = append(topics, metrics.TopicBacklog{Topic: p.Topic, Pending: p.Pending, OldestAge: p.OldestAge})
	}
	for _, f := range failures {
		topics = append(topics, metrics.TopicBacklog{Topic: f.Topic, ParkedKeys: f.ParkedKeys, DeadLetters: f.DeadLetters})
	}
	m.metrics.Backlog(time.Now(), topics)
	return nil
}
