package e2e_test

import (
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// startPostgres starts a PostgreSQL that the test may break.
func startPostgres(t *testing.T, options servers.PostgresOptions) *servers.Postgres {
	t.Helper()
	server, err := servers.StartPostgres(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, server)
	return server
}

// What a transaction with synchronous_commit = off wrote can be seen before it
// is on disk, and is gone after a crash. Nothing of that may have been published.
func TestAsynchronousCommitsLostInACrashAreNotPublished(t *testing.T) {
	for name, sql := range map[string]string{"all is allowed": "", "no functions": revokeLog} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			crashWithAsynchronousCommits(t, sql)
		})
	}
}

func crashWithAsynchronousCommits(t *testing.T, sql string) {
	t.Helper()
	const crashes = 6
	server := startPostgres(t, servers.PostgresOptions{
		Durable: true,
		// Nothing but commits writes the log out, so that much is lost.
		Settings: map[string]string{"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"},
	})
	// Marks are committed synchronously and so write the log out too: they are
	// slow here, so that most crashes come between a publication and its mark.
	stage := scenario.NewStage(t, scenario.NewDatabaseOn(t, server.URL("postgres")), scenario.NewKafkaLog(t), scenario.Settings{"outbox.workers": 1})
	stage.Database.Exec(t, `
CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END';
CREATE TRIGGER dawdle BEFORE UPDATE ON `+stage.Table+` FOR EACH STATEMENT EXECUTE FUNCTION dawdle()`)
	// The superuser may call anything: the relay is somebody else.
	stage.Database.Exec(t, `CREATE ROLE relay LOGIN; GRANT ALL ON outbox, outbox_parked, outbox_dead_letters TO relay; `+sql)
	relay := stage.Relay(scenario.Settings{"database.url": strings.Replace(stage.Database.URL, "postgres@", "relay@", 1)})
	relay.Start()
	load := stage.StartLoad(scenario.Workload{Writers: 10, Rate: 500, AsyncCommit: true, Unreliable: true})
	random := stage.Random(1)
	for range crashes {
		flows(t, stage)
		time.Sleep(time.Duration(300+random.IntN(300)) * time.Millisecond)
		if err := server.Stop(servers.Immediate); err != nil {
			t.Fatal(err)
		}
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	flows(t, stage)
	load.Stop()
	stage.Drain(30 * time.Second)
	relay.Stop()
	stage.Verify(crashes * stage.Config.InFlight())
}

// flows waits until the broker gets new records.
func flows(t *testing.T, stage *scenario.Stage) {
	t.Helper()
	before := len(stage.Records())
	scenario.Await(t, 30*time.Second, "messages to flow", func() (bool, string) {
		return len(stage.Records()) > before, "the broker gets nothing"
	})
}

func TestDatabaseRestartsAndCrashes(t *testing.T) {
	t.Parallel()
	server := startPostgres(t, servers.PostgresOptions{})
	stage := scenario.NewStage(t, scenario.NewDatabaseOn(t, server.URL("postgres")), scenario.NewKafkaLog(t), nil)
	fleet := stage.StartFleet(2)
	sampler := stage.StartSampler()
	load := stage.StartLoad(scenario.Workload{Unreliable: true})
	stops := []servers.StopMode{servers.Fast, servers.Immediate, servers.Fast, servers.Immediate}
	for _, mode := range stops {
		flows(t, stage)
		if err := server.Stop(mode); err != nil {
			t.Fatal(err)
		}
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	flows(t, stage)
	load.Stop()
	stage.Drain(30 * time.Second)
	fleet.Stop()
	sampler.Stop()
	stage.Verify(len(stops) * len(fleet) * stage.Config.InFlight())
}

func TestTerminatedSessions(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, scenario.Settings{"outbox.batch_size": 50})
	fleet := stage.StartFleet(2)
	sampler := stage.StartSampler()
	load := stage.StartLoad(scenario.Workload{})
	sessions := 0
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		sessions += scenario.One[int](t, stage.Database, `
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox-relay'`)
		time.Sleep(150 * time.Millisecond)
	}
	load.Stop()
	stage.Drain(30 * time.Second)
	fleet.Stop()
	sampler.Stop()
	if sessions == 0 {
		t.Error("no session was terminated")
	}
	t.Logf("terminated %d sessions", sessions)
	stage.Verify(sessions * 50)
}
