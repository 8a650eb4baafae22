package e2e_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

func TestThroughPgBouncerInTransactionMode(t *testing.T) {
	for name, direct := range map[string]bool{"with a direct URL": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database := scenario.NewDatabase(t)
			parsed, err := pgx.ParseConfig(database.URL)
			if err != nil {
				t.Fatal(err)
			}
			pooler, err := servers.StartPgBouncer(t.Context(), servers.PgBouncerOptions{PostgresPort: int(parsed.Port)})
			if err != nil {
				t.Fatal(err)
			}
			servers.CleanUp(t, pooler)
			settings := scenario.Settings{"database.url": pooler.URL(database.Name), "outbox.batch_size": 50}
			if direct {
				settings["database.direct_url"] = database.URL
			}
			stage := scenario.NewStage(t, database, scenario.NewKafkaLog(t), settings)
			fleet := stage.StartFleet(2)
			sampler := stage.StartSampler()
			load := stage.StartLoad(scenario.Workload{Notify: true})
			kills := stage.KillLoop(fleet, 4*time.Second)
			load.Stop()
			stage.Drain(30 * time.Second)
			fleet.Stop()
			sampler.Stop()
			stage.Verify(kills * stage.Config.InFlight())
		})
	}
}
