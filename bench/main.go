// Bench measures the relay on this machine: how fast it drains a backlog, what
// it costs, and how long a row takes from commit to acknowledgement. Servers
// and relay share the machine, so figures compare within one run only.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/outboxrelay/relay/e2e/servers"
)

type settings struct {
	rows, keys, bytes, partitions int
	rate, writers                 int
	duration                      time.Duration
	batch, workers                int
	onPublished                   string
	only                          string
}

func main() {
	var s settings
	flag.IntVar(&s.rows, "rows", 300_000, "pending rows to drain")
	flag.IntVar(&s.keys, "keys", 1000, "distinct keys")
	flag.IntVar(&s.bytes, "bytes", 200, "payload of a row")
	flag.IntVar(&s.partitions, "partitions", 6, "partitions of the topic")
	flag.IntVar(&s.rate, "rate", 1000, "rows per second while latency is measured")
	flag.IntVar(&s.writers, "writers", 4, "connections that write while latency is measured")
	flag.DurationVar(&s.duration, "duration", 20*time.Second, "how long latency is measured")
	flag.IntVar(&s.batch, "batch", 1000, "outbox.batch_size")
	flag.IntVar(&s.workers, "workers", 4, "outbox.workers")
	flag.StringVar(&s.onPublished, "on-published", "mark", "outbox.on_published")
	flag.StringVar(&s.only, "only", "", "drain or latency; both by default")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) error {
	if err := servers.Deps(ctx, os.Stderr); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "outbox-relay-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	binary := filepath.Join(scratch, "relay")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/relay")
	build.Dir, build.Env, build.Stderr = "..", append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the relay: %w", err)
	}
	postgres, err := servers.StartPostgres(ctx, servers.PostgresOptions{
		Durable: true, OnDisk: true,
		Settings: map[string]string{"shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"},
	})
	if err != nil {
		return err
	}
	defer func() { _ = postgres.Close() }()
	kafka, err := servers.StartKafka(ctx, servers.KafkaOptions{HeapMB: 1024})
	if err != nil {
		return err
	}
	defer func() { _ = kafka.Close() }()

	b := &bench{settings: s, scratch: scratch, binary: binary, postgres: postgres, kafka: kafka}
	fmt.Printf("PostgreSQL with fsync, one Kafka broker, acks=all, %d partitions, all on this machine\n", s.partitions)
	if s.only != "latency" {
		if err := b.drain(ctx); err != nil {
			return fmt.Errorf("drain: %w", err)
		}
	}
	if s.only != "drain" {
		if err := b.latency(ctx); err != nil {
			return fmt.Errorf("latency: %w", err)
		}
	}
	return nil
}
