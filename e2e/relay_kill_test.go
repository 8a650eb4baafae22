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

// A backlog fills every batch, so that a kill leaves as much in flight as there
// can be.
func TestKillsWhileABacklogDrains(t *testing.T) {
	for name, test := range map[string]struct {
		newStage func(testing.TB, scenario.Settings) *scenario.Stage
		rows     int
	}{
		"kafka": {scenario.NewKafkaStage, 40_000},
		// Strict order has it wait for a confirm of each row before the key's next.
		"rabbitmq": {scenario.NewRabbitStage, 8_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stage := test.newStage(t, scenario.Settings{"outbox.batch_size": 250})
			stage.Database.Exec(t, `
WITH o AS (
    INSERT INTO `+stage.Table+` (topic, key, payload) SELECT $1, 'key-' || i % 300, convert_to('payload ' || i, 'UTF8') FROM generate_series(1, $2::int) i
    RETURNING id, message_id, topic, key, payload
)
INSERT INTO truth (message_id, id, topic, key, digest) SELECT message_id, id, topic, key, decode(md5(payload), 'hex') FROM o`, stage.Topic(), test.rows)
			fleet := stage.StartFleet(2)
			sampler := stage.StartSampler()
			kills := stage.KillLoop(fleet, 4*time.Second)
			stage.Drain(60 * time.Second)
			fleet.Stop()
			sampler.Stop()
			stage.Verify(kills * stage.Config.InFlight())
		})
	}
}
