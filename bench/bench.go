package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/e2e/servers"
)

// bench is the servers and the relay's binary.
type bench struct {
	settings
	scratch, binary string
	postgres        *servers.Postgres
	kafka           *servers.Kafka
}

// prepare makes a database with an outbox, and a topic of the same name.
func (b *bench) prepare(ctx context.Context, name string) (conn *pgx.Conn, config string, err error) {
	url, err := b.postgres.CreateDatabase(ctx, name)
	if err != nil {
		return nil, "", err
	}
	if err := b.kafka.CreateTopic(ctx, name, b.partitions, nil); err != nil {
		return nil, "", err
	}
	config = filepath.Join(b.scratch, name+".yaml")
	text := fmt.Sprintf(`database: {url: %q}
outbox: {batch_size: %d, workers: %d, on_published: %s}
sinks: {main: {kafka: {brokers: [%q]}}}
http: {listen: ""}
`, url, b.batch, b.workers, b.onPublished, b.kafka.Brokers()[0])
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, "", err
	}
	migrate := exec.CommandContext(ctx, b.binary, "migrate", "--config", config)
	if out, err := migrate.CombinedOutput(); err != nil {
		return nil, "", fmt.Errorf("relay migrate: %w: %s", err, out)
	}
	conn, err = pgx.Connect(ctx, url)
	return conn, config, err
}

// relay is a running relay process.
type relay struct {
	command *exec.Cmd
	log     *os.File
}

func (b *bench) start(ctx context.Context, config string) (*relay, error) {
	log, err := os.Create(config + ".log")
	if err != nil {
		return nil, err
	}
	r := &relay{command: exec.CommandContext(ctx, b.binary, "run", "--config", config), log: log}
	r.command.Stderr = log
	return r, r.command.Start()
}

// stop ends the relay in good order.
func (r *relay) stop() error {
	defer func() { _ = r.log.Close() }()
	if err := r.command.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := r.command.Wait(); err != nil {
		text, _ := os.ReadFile(r.log.Name()) // without it the error has to do
		return fmt.Errorf("the relay: %w: %s", err, text)
	}
	return nil
}
