// Command shipping is an example: a service that ships the orders which the
// order service says were paid, each of them once, through an inbox.
// service.go is the part to copy from; consumer.go connects it to a broker.
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
	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/metrics"
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
		fmt.Fprintln(os.Stderr, "shipping:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("shipping", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "shipping ships paid orders until it is stopped, reading the Kafka topic orders or the RabbitMQ queue shipping:\n\n"+
			"  DATABASE_URL=postgres://localhost/depot KAFKA_BROKERS=localhost:9092 shipping\n"+
			"  DATABASE_URL=postgres://localhost/depot RABBITMQ_URL=amqp://guest:guest@localhost/ shipping")
		flags.PrintDefaults()
	}
	listen := flags.String("listen", "", "where to serve /healthz and /metrics, such as localhost:8081; nowhere unless set")
	sessionTimeout := flags.Duration("session-timeout", 45*time.Second, "after which Kafka gives the partitions of a dead instance to others")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if *sessionTimeout <= 0 || flags.NArg() > 0 {
		fmt.Fprintln(flags.Output(), "shipping: --session-timeout must be positive, and there are no arguments")
		return errUsage
	}

	// Read here alone, so that a password is in no process list.
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	defer pool.Close()
	service := &Service{pool}
	if err := service.Prepare(ctx); err != nil {
		return fmt.Errorf("make the tables: %w", err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	registry := prometheus.NewRegistry()
	box := &inbox.Inbox{Consumer: "shipping", Observer: metrics.New(registry)}
	consumer, err := newConsumer(service, box, os.Getenv("KAFKA_BROKERS"), os.Getenv("RABBITMQ_URL"), *sessionTimeout, log)
	if err != nil {
		return err
	}
	audit := newAudit(pool, consumer.duplicates)
	defer audit.stop()
	log.Info("shipping")
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return consumer.Run(ctx) })
	group.Go(func() error { return monitor.Serve(ctx, *listen, pool, registry) })
	return group.Wait()
}
