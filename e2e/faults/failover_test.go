package faults_test

import (
	"context"
	"testing"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// The primary dies and its synchronous standby is promoted. The relays find it
// by themselves, through target_session_attrs=read-write. What an application
// was told is committed is on the standby, and a row that is not there was never
// visible to a relay.
func TestFailoverToAStandby(t *testing.T) {
	primary, err := servers.StartPostgres(t.Context(), servers.PostgresOptions{})
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, primary)
	standby, err := primary.StartStandby(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, standby)
	p := newOwnPlay(t, scenario.NewDatabaseOn(t, servers.FailoverURL("postgres", primary, standby)), scenario.NewKafkaLog(t))
	p.perform(steady, func(ctx context.Context) (int, error) {
		primary.Kill()
		if err := standby.Promote(ctx); err != nil {
			return 0, err
		}
		// Marks do not wait for the standby: those of the last claims are lost.
		return 2 * p.inFlight(), p.flows(ctx)
	})
}

// newOwnPlay starts two relays between servers of the scenario's own.
func newOwnPlay(t testing.TB, database *scenario.Database, log scenario.Log) *play {
	t.Helper()
	stage := scenario.NewStage(t, database, log, settings(nil))
	p := &play{t: t, stage: stage, log: log, main: log, topic: stage.Topic()}
	t.Logf("seed: %s=%d", scenario.SeedVariable, stage.Seed)
	p.fleet = stage.StartFleet(2)
	return p
}
