package main

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"github.com/outboxrelay/relay/internal/admin"
	"github.com/outboxrelay/relay/internal/backlog"
	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/delivery"
	"github.com/outboxrelay/relay/internal/inspect"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/internal/systemd"
	"github.com/outboxrelay/relay/internal/tracing/otlp"
)

func newRun(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Relay until SIGTERM or SIGINT",
		Long: `Relays until SIGTERM or SIGINT; then it claims no more, lets what is in flight
finish (bounded by shutdown_timeout) and exits 0. A second signal exits at once.
A database or a broker that is away is tried until it is back.`,
		Example: "  relay run --config relay.yaml",
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := o.load()
			if err != nil {
				return err
			}
			return relay(command.Context(), c, newLogger(c.Log, os.Stderr))
		},
	}
}

// barrierConnections is how many connections the flush barrier has.
const barrierConnections = 1

// relay runs the whole pipeline until ctx ends.
func relay(ctx context.Context, c *config.Config, logger *slog.Logger) error {
	pool, err := newPoolBeside(ctx, c, barrierConnections)
	if err != nil {
		return err
	}
	defer func() {
		if !source.ClosePool(pool) {
			logger.Warn("connections to the database do not close: the server or the network does not answer; they end with the process")
		}
	}()
	publishers, err := newPublishers(c, logger)
	if err != nil {
		return failed(err)
	}
	defer func() {
		if err := publishers.close(); err != nil {
			logger.Warn("a sink did not close cleanly", "error", err)
		}
	}()
	spans := otlp.Start(ctx, version, logger)
	defer spans.Stop()
	registry := prometheus.NewRegistry()
	meter := newMeter(registry, c)
	meterThrottles(meter, publishers)
	manager := systemd.New(os.Getenv, c.ShutdownTimeout, logger)
	barrier := source.NewBarrier(pool, c.Outbox.Schema, c.Outbox.Table, logger)
	defer barrier.Close()
	relay := newRelay(c, pool, barrier, publishers, delivery.Options{
		Logger: logger, Observer: manager.Observe(meter), Tracer: newTracer(spans, c, pool.Config().ConnConfig),
	})

	var background sync.WaitGroup
	defer background.Wait()
	// What stands beside the loop goes on until the loop has ended.
	beside, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	if c.HTTP.Listen != "" {
		listener, err := c.HTTP.Open(ctx)
		if err != nil {
			return failed(err)
		}
		server := &admin.Server{
			Config: c.HTTP, Live: relay.Live, Ready: relay.Ready, Logger: logger,
			Metrics: promhttp.HandlerFor(registry, promhttp.HandlerOpts{}),
		}
		background.Go(func() { server.Serve(beside, listener) })
		waiting := backlog.NewMeter(pool, c.Outbox.Schema, c.Outbox.Table, meter, logger)
		background.Go(func() { waiting.Run(beside) })
	}
	if c.Outbox.Notify {
		direct, err := c.Database.DirectConfig()
		if err != nil {
			return err
		}
		listener := &source.Listener{Config: direct, Table: c.Outbox.Table, Wake: relay.Wake, Logger: logger}
		background.Go(func() { listener.Run(beside) })
	}
	if c.Outbox.Retention > 0 && c.Outbox.OnPublished == source.Mark {
		pruner := source.NewPruner(pool, c.Outbox.Schema, c.Outbox.Table, c.Outbox.Retention)
		background.Go(func() { pruner.Run(beside, logger) })
	}

	hidden := inspect.NewRowSecurityWatch(source.Bounded{DB: pool, Access: pgx.ReadOnly, Limit: time.Minute}, c, logger)
	background.Go(func() { hidden.Run(beside) })

	for _, warning := range c.Warnings() {
		logger.Warn("configuration", "warning", warning)
	}
	logger.Info("relay runs", "version", version, "schema", c.Outbox.Schema, "table", c.Outbox.Table,
		"mode", c.Outbox.Mode, "ordering", c.Outbox.Ordering, "workers", c.Outbox.Workers, "batch_size", c.Outbox.BatchSize)
	background.Go(func() { manager.Run(beside, ctx.Done(), relay) })
	relay.Run(ctx)
	spans.Stop()
	logger.Info("relay stopped")
	return nil
}

// newPool makes the pool of connections; it does not dial yet.
func newPool(ctx context.Context, c *config.Config) (*pgxpool.Pool, error) {
	return newPoolBeside(ctx, c, 0)
}

// newPoolBeside is newPool for a pool that leaves so many connections to what
// stands beside it, as long as two remain: one to claim with, one for upkeep.
func newPoolBeside(ctx context.Context, c *config.Config, beside int32) (*pgxpool.Pool, error) {
	settings, err := c.Database.PoolConfig()
	if err != nil {
		return nil, err
	}
	settings.MaxConns = max(settings.MaxConns-beside, min(settings.MaxConns, 2))
	settings.AfterConnect = source.SetUp
	return pgxpool.NewWithConfig(ctx, settings)
}
