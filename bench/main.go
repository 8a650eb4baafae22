// Bench measures the relay on this machine: how fast it drains a backlog, what
// it costs, and how long a row takes from its commit to a consumer; beside it
// Debezium and Kafka's own producer, or another build of the relay. Servers and
// all of these share the machine, so figures compare within one run only.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/outboxrelay/relay/e2e/servers"
)

type settings struct {
	rows, keys, bytes, partitions int
	rate, writers                 int
	duration, settleIn            time.Duration
	batch, workers                int
	onPublished                   string
	only                          string
	lanes                         string
	against                       string
	rounds                        int
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
	flag.DurationVar(&s.settleIn, "settle-in", 20*time.Second, "how long rows are written before that")
	flag.IntVar(&s.batch, "batch", 1000, "outbox.batch_size of the relay's default lane")
	flag.IntVar(&s.workers, "workers", 4, "outbox.workers")
	flag.StringVar(&s.onPublished, "on-published", "mark", "outbox.on_published of the relay's default lane")
	flag.StringVar(&s.only, "only", "", "drain or latency; both by default")
	flag.StringVar(&s.lanes, "lanes", "relay,debezium,producer", "what is measured, as a `list`")
	flag.StringVar(&s.against, "against", "", "`path` of another build of the relay: only the two are measured, in turn")
	flag.IntVar(&s.rounds, "rounds", 0, "how often each lane is measured, of which the medians count (default 1, with -against 3)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// complete checks the flags and fills in what depends on others.
func (s *settings) complete() error {
	if !slices.Contains([]string{"", drain, latency}, s.only) {
		return fmt.Errorf("-only %s: there are %s and %s", s.only, drain, latency)
	}
	for lane := range strings.SplitSeq(s.lanes, ",") {
		if !slices.Contains([]string{laneRelay, laneDebezium, laneProducer}, lane) {
			return fmt.Errorf("-lanes: unknown lane %q: there are %s, %s and %s", lane, laneRelay, laneDebezium, laneProducer)
		}
	}
	if s.rounds < 0 {
		return errors.New("-rounds must not be negative")
	}
	if s.against != "" {
		if _, err := exec.LookPath(s.against); err != nil {
			return fmt.Errorf("-against: %w", err)
		}
		s.lanes = laneRelay
	}
	if s.rounds == 0 {
		s.rounds = 1
		if s.against != "" {
			s.rounds = 3
		}
	}
	return nil
}

// measures says whether a lane is wanted.
func (s *settings) measures(lane string) bool {
	return slices.Contains(strings.Split(s.lanes, ","), lane)
}

func run(ctx context.Context, s settings) error {
	if err := s.complete(); err != nil {
		return err
	}
	if err := servers.Deps(ctx, os.Stderr); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "outbox-relay-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	b := &bench{settings: s, scratch: scratch, binary: filepath.Join(scratch, "relay")}
	if b.measures(laneDebezium) {
		if b.plugins, err = servers.Debezium(ctx, os.Stderr); err != nil {
			return err
		}
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", b.binary, "./cmd/relay")
	build.Dir, build.Env, build.Stderr = "..", append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the relay: %w", err)
	}
	b.postgres, err = servers.StartPostgres(ctx, servers.PostgresOptions{
		Durable: true, OnDisk: true,
		Settings: map[string]string{
			"shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "30min",
			// Debezium is paused while its backlog is written.
			"wal_sender_timeout": "0",
		},
	})
	if err != nil {
		return err
	}
	defer func() { _ = b.postgres.Close() }()
	b.kafka, err = servers.StartKafka(ctx, servers.KafkaOptions{HeapMB: 1024})
	if err != nil {
		return err
	}
	defer func() { _ = b.kafka.Close() }()

	fmt.Printf("PostgreSQL with fsync, one Kafka broker, acks=all, %d partitions, all on this machine\n", s.partitions)
	fmt.Printf("%d pending rows of %d bytes over %d keys; then %d transactions a second from %d connections\n\n",
		s.rows, s.bytes, s.keys, s.rate, s.writers)
	results, err := b.measure(ctx)
	fmt.Print(table(results))
	return err
}
