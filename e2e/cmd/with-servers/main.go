// Command with-servers runs a command beside real servers: one PostgreSQL, one
// Kafka and one RabbitMQ, those left out that the environment names already.
// It tells the command where they are, stops them when the command ends, and
// ends with the command's exit code.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/outboxrelay/relay/e2e/servers"
)

const usage = `Usage: with-servers [flags] -- command [argument...]

Starts PostgreSQL, Kafka and RabbitMQ, runs the command with RELAY_TEST_POSTGRES_URL,
RELAY_TEST_KAFKA_BROKERS and RELAY_TEST_RABBITMQ_URL set, and stops them when it ends.
A server whose variable is set already is not started.

Example: with-servers --postgres 14 -- go test ./...

Flags:
`

func main() {
	flags := flag.NewFlagSet("with-servers", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	var options servers.EnvironmentOptions
	flags.StringVar(&options.Postgres.Version, "postgres", servers.DefaultPostgresVersion,
		"PostgreSQL's version, one of "+strings.Join(servers.PostgresVersions(), ", ")+", or a major version")
	flags.BoolVar(&options.Postgres.Durable, "durable", false, "let PostgreSQL keep fsync on")
	flags.IntVar(&options.Kafka.HeapMB, "kafka-heap", 256, "Kafka's heap in `MB`; from 1024 on it runs at full speed")
	without := flags.String("without", "", "kinds that are not needed, as a `list`: postgres,kafka,rabbitmq")
	switch err := flags.Parse(os.Args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(2)
	case flags.NArg() == 0:
		flags.Usage()
		os.Exit(2)
	}
	if *without != "" {
		options.Without = strings.Split(*without, ",")
	}
	os.Exit(run(options, flags.Args(), os.Stderr))
}

// run returns the exit code.
func run(options servers.EnvironmentOptions, args []string, out io.Writer) int {
	// From the start on, so that no signal ends this before the servers.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	shared, err := start(options, signals, out)
	if err != nil {
		fmt.Fprintln(out, "with-servers:", err)
		return 1
	}
	code, err := runCommand(args, shared.Variables(), signals)
	if err != nil {
		fmt.Fprintln(out, "with-servers:", err)
	}
	if code != 0 {
		dir := filepath.Join(servers.LogsDir(), "with-servers")
		if err := shared.KeepLogs(dir); err != nil {
			fmt.Fprintln(out, "with-servers:", err)
		} else {
			fmt.Fprintln(out, "with-servers: the servers' logs are kept in", dir)
		}
	}
	if err := shared.Close(); err != nil {
		fmt.Fprintln(out, "with-servers:", err)
	}
	return code
}

// start starts the servers; a signal ends that.
func start(options servers.EnvironmentOptions, signals <-chan os.Signal, out io.Writer) (*servers.Shared, error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	type result struct {
		shared *servers.Shared
		err    error
	}
	began := time.Now()
	started := make(chan result, 1)
	go func() {
		shared, err := servers.StartShared(ctx, servers.FromEnvironment(), options)
		started <- result{shared, err}
	}()
	for {
		select {
		case sig := <-signals:
			cancel(fmt.Errorf("ended by the signal %v", sig))
		case r := <-started:
			if r.err == nil && ctx.Err() != nil {
				return nil, errors.Join(context.Cause(ctx), r.shared.Close())
			}
			if r.err == nil {
				fmt.Fprintf(out, "with-servers: ready in %v: %s\n", time.Since(began).Round(100*time.Millisecond),
					strings.Join(r.shared.Variables(), " "))
			}
			return r.shared, r.err
		}
	}
}
