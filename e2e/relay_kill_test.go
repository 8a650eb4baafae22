package e2e_test

import (
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// survivesKills lets relays be killed under load and checks everything.
func survivesKills(t *testing.T, stage *scenario.Stage, relays int, duration time.Duration) {
	t.Helper()
	fleet := stage.StartFleet(relays)
	sampler := stage.StartSampler()
	load := stage.StartLoad(scenario.Workload{})
	kills := stage.KillLoop(fleet, duration)
	load.Stop()
	stage.Drain(30 * time.Second)
	fleet.Stop()
	sampler.Stop()
	stage.Verify(kills * stage.Config.InFlight())
}

var smallBatches = scenario.Settings{"outbox.batch_size": 8, "outbox.workers": 2}

func TestKillsOfTwoRelaysToKafkaInSmallBatches(t *testing.T) {
	t.Parallel()
	survivesKills(t, scenario.NewKafkaStage(t, smallBatches), 2, 8*time.Second)
}

func TestKillsOfFourRelaysToKafka(t *testing.T) {
	t.Parallel()
	survivesKills(t, scenario.NewKafkaStage(t, nil), 4, 8*time.Second)
}

func TestKillsOfTwoRelaysToKafkaThatDeletePublishedRows(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, scenario.Settings{"outbox.on_published": "delete", "outbox.batch_size": 20})
	survivesKills(t, stage, 2, 6*time.Second)
}

func TestKillsOfTwoRelaysToRabbitMQ(t *testing.T) {
	t.Parallel()
	survivesKills(t, scenario.NewRabbitStage(t, scenario.Settings{"outbox.batch_size": 16}), 2, 8*time.Second)
}

func TestKillsOfFourRelaysToRabbitMQ(t *testing.T) {
	t.Parallel()
	survivesKills(t, scenario.NewRabbitStage(t, nil), 4, 6*time.Second)
}

func TestKillsOnTheOldestPostgreSQL(t *testing.T) {
	t.Parallel()
	server, err := servers.StartPostgres(t.Context(), servers.PostgresOptions{Version: servers.OldestPostgresVersion})
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, server)
	stage := scenario.NewStage(t, scenario.NewDatabaseOn(t, server.URL("postgres")), scenario.NewKafkaLog(t), smallBatches)
	survivesKills(t, stage, 2, 6*time.Second)
}
