package faults_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// disk is what a server with a small one can do.
type disk interface {
	FillDisk() error
	EmptyDisk() error
	Running() bool
	Start(ctx context.Context) error
}

// fillDisk fills a server's disk, waits until hurt says that it shows, makes
// space, and starts the server if that was too much for it.
func fillDisk(ctx context.Context, server disk, hurt func(context.Context) (bool, string)) error {
	if err := server.FillDisk(); err != nil {
		return err
	}
	err := await(ctx, "the full disk to show", hurt)
	if err := errors.Join(err, server.EmptyDisk()); err != nil {
		return err
	}
	if server.Running() {
		return nil
	}
	return server.Start(ctx)
}

// PostgreSQL's disk is full: nothing can be written, not even a mark. When there
// is space again everything goes on, if need be after a restart.
func TestDiskOfPostgreSQLIsFull(t *testing.T) {
	server, err := servers.StartPostgres(t.Context(), servers.PostgresOptions{
		DiskMB: 192, Settings: map[string]string{"min_wal_size": "2MB", "max_wal_size": "8MB"},
	})
	if errors.Is(err, servers.ErrNoDisk) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, server)
	p := newOwnPlay(t, scenario.NewDatabaseOn(t, server.URL("postgres")), scenario.NewKafkaLog(t))
	p.perform(scenario.Workload{}, func(ctx context.Context) (int, error) {
		newest, since := int64(-1), time.Now()
		err := fillDisk(ctx, server, func(ctx context.Context) (bool, string) {
			var id int64
			if err := p.stage.Database.Pool.QueryRow(ctx, `SELECT coalesce(max(id), 0) FROM truth`).Scan(&id); err != nil {
				return !server.Running(), err.Error()
			}
			if id != newest {
				newest, since = id, time.Now()
			}
			return time.Since(since) > 2*time.Second, "rows are still written"
		})
		return p.inFlight(), errors.Join(err, p.flows(ctx))
	})
}

// Kafka's disk is full: the broker ends itself. When there is space again and it
// was started, everything goes on.
func TestDiskOfKafkaIsFull(t *testing.T) {
	server, err := servers.StartKafka(t.Context(), servers.KafkaOptions{DiskMB: 96})
	if errors.Is(err, servers.ErrNoDisk) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, server)
	p := newOwnPlay(t, scenario.NewDatabase(t), scenario.NewKafkaTopics(t, server.Brokers(), 1, partitions))
	p.perform(scenario.Workload{}, func(ctx context.Context) (int, error) {
		err := fillDisk(ctx, server, func(context.Context) (bool, string) { return !server.Running(), "the broker runs" })
		return p.inFlight(), errors.Join(err, p.flows(ctx))
	})
}
