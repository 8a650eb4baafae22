// Package service is what the three services have in common: a database, the
// consumer that feeds the handlers through the inbox, and HTTP.
package service

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/kafka"
	"github.com/outboxrelay/relay/inbox/metrics"
)

// Service is what differs between them.
type Service struct {
	// Name is the service's, its inbox consumer's and its consumer group's.
	Name string
	// Schema makes the service's own tables where they are missing.
	Schema string
	// Topics are those that the service reads, Handler what it does about them.
	Topics  []string
	Handler inbox.Handler
	// Serve, unless nil, adds to what the service answers by HTTP.
	Serve func(*http.ServeMux, *pgxpool.Pool)
}

// settings are the process's.
type settings struct {
	// listen is where HTTP is served.
	listen string
	// prefix is put before the names of topics and groups.
	prefix         string
	sessionTimeout time.Duration
	// From the environment, so that no password is in a list of processes.
	databaseURL string
	brokers     []string
}

var errUsage = errors.New("usage")

// Main runs the service until SIGINT or SIGTERM, and ends the process.
func (s Service) Main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := s.main(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2) // flag has said what is wrong
	case err != nil:
		fmt.Fprintf(os.Stderr, "%s: %v\n", s.Name, err)
		os.Exit(1)
	}
}

func (s Service) main(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet(s.Name, flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "%[1]s is one of the services of the saga; it runs until it is stopped:\n\n"+
			"  DATABASE_URL=postgres://localhost/%[1]s KAFKA_BROKERS=localhost:9092 %[1]s --listen localhost:8080\n", s.Name)
		flags.PrintDefaults()
	}
	set := settings{databaseURL: os.Getenv("DATABASE_URL")}
	flags.StringVar(&set.listen, "listen", "localhost:8080", "where to serve HTTP: /healthz, /metrics")
	flags.StringVar(&set.prefix, "prefix", "", "what the names of topics and consumer groups begin with, where sagas share a Kafka")
	flags.DurationVar(&set.sessionTimeout, "session-timeout", 45*time.Second, "after which Kafka gives the partitions of a dead instance to others")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if set.sessionTimeout <= 0 || flags.NArg() > 0 {
		fmt.Fprintf(flags.Output(), "%s: --session-timeout must be positive, and there are no arguments\n", s.Name)
		return errUsage
	}
	if brokers := os.Getenv("KAFKA_BROKERS"); brokers != "" {
		set.brokers = strings.Split(brokers, ",")
	}
	return s.run(ctx, set)
}

// run consumes and serves until ctx ends.
func (s Service) run(ctx context.Context, set settings) error {
	pool, err := pgxpool.New(ctx, set.databaseURL)
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	defer pool.Close()
	if err := s.prepare(ctx, pool); err != nil {
		return fmt.Errorf("make the tables: %w", err)
	}

	registry := prometheus.NewRegistry()
	consumer, err := s.consumer(set, pool, metrics.New(registry))
	if err != nil {
		return err
	}
	mux := newMux(pool, registry)
	if s.Serve != nil {
		s.Serve(mux, pool)
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return consumer.Run(ctx) })
	group.Go(func() error { return serve(ctx, set.listen, mux) })
	return group.Wait()
}

// prepare may run in several instances at once.
func (s Service) prepare(ctx context.Context, pool *pgxpool.Pool) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtext('examples/saga'))`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, s.Schema)
		return err
	})
}

func (s Service) consumer(set settings, pool *pgxpool.Pool, observer inbox.Observer) (*kafka.Consumer, error) {
	topics := make([]string, len(s.Topics))
	for i, topic := range s.Topics {
		topics[i] = set.prefix + topic
	}
	return kafka.New(kafka.Config{
		Brokers: set.brokers,
		Group:   set.prefix + s.Name,
		Topics:  topics,
		Inbox:   &inbox.Inbox{Consumer: s.Name, Observer: observer},
		DB:      pool,
		Handler: s.Handler,
		// A message that cannot be processed holds up those behind it. Put aside,
		// it would be overtaken: an order's cancellation must not come before
		// what it cancels.
		MaxAttempts:       math.MaxInt32,
		SessionTimeout:    set.sessionTimeout,
		HeartbeatInterval: set.sessionTimeout / 4,
		Logger:            slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
}
