// Command orders is an example: a small order service that publishes its
// events through a transactional outbox. service.go is the part to copy from;
// customers.go makes the service busy.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/outboxrelay/relay/examples/orders/internal/monitor"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2) // flag has said what is wrong
	case err != nil:
		fmt.Fprintln(os.Stderr, "orders:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("orders", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "orders places, pays, ships and cancels orders until it is stopped:\n\n"+
			"  DATABASE_URL=postgres://localhost/shop orders --rate 100 --duration 1m")
		flags.PrintDefaults()
	}
	rate := flags.Float64("rate", 100, "transactions per second")
	duration := flags.Duration("duration", 0, "how long to go on; 0 until SIGINT or SIGTERM")
	listen := flags.String("listen", "", "where to serve /healthz and /metrics, such as localhost:8080; nowhere unless set")
	workers := flags.Int("workers", 8, "transactions at a time")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if *rate <= 0 || *workers <= 0 || flags.NArg() > 0 {
		fmt.Fprintln(flags.Output(), "orders: --rate and --workers must be positive, and there are no arguments")
		return errUsage
	}

	// DATABASE_URL is read here alone, so that a password is in no process list.
	config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	config.MaxConns = int32(*workers)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()

	service := NewService(pool)
	if err := service.Prepare(ctx); err != nil {
		return fmt.Errorf("make the tables: %w", err)
	}
	if *duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *duration)
		defer cancel()
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	customers := &Customers{service: service, log: log, rate: *rate, workers: *workers}
	started := time.Now()
	log.Info("taking orders", "rate", *rate, "workers", *workers)
	registry := prometheus.NewRegistry()
	customers.register(registry)
	group, ctx := errgroup.WithContext(ctx)
	ctx, done := context.WithCancel(ctx)
	group.Go(func() error { return monitor.Serve(ctx, *listen, pool, registry) })
	group.Go(func() error {
		defer done()
		return customers.Run(ctx)
	})
	if err := group.Wait(); err != nil {
		return err
	}
	log.Info("stopped", "after", time.Since(started).Round(time.Millisecond), "committed", customers.committed.Load(),
		"declined", customers.declined.Load(), "failed", customers.failed.Load())
	return nil
}
