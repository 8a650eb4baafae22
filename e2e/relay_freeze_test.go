package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// A relay that is frozen in the middle of a claim loses its session to the
// server's bound; another takes its rows over. When it wakes, what it still
// sends comes too late to disturb the order.
func TestFrozenRelay(t *testing.T) {
	stages := map[string]func(testing.TB, scenario.Settings) *scenario.Stage{
		"kafka": scenario.NewKafkaStage, "rabbitmq": scenario.NewRabbitStage,
	}
	for name, newStage := range stages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stage := newStage(t, scenario.Settings{"outbox.publish_timeout": "1s", "outbox.batch_size": 100})
			sampler := stage.StartSampler()
			frozen := stage.Start()
			load := stage.StartLoad(scenario.Workload{Rate: 150})
			freezeInAClaim(t, stage, frozen)
			var last int64
			if err := stage.Database.Pool.QueryRow(t.Context(), `SELECT max(id) FROM truth`).Scan(&last); err != nil {
				t.Fatal(err)
			}
			second := stage.Start()
			scenario.Await(t, 20*time.Second, "the second relay to take over", func() (bool, string) {
				left := scenario.One[int](t, stage.Database, `SELECT count(*) FROM `+stage.Table+` WHERE published_at IS NULL AND id <= $1`, last)
				return left == 0, fmt.Sprintf("%d rows from before the freeze are pending", left)
			})
			frozen.Thaw()
			time.Sleep(2 * time.Second) // both work
			load.Stop()
			stage.Drain(20 * time.Second)
			frozen.Stop()
			second.Stop()
			sampler.Stop()
			stage.Verify(stage.Config.InFlight())
		})
	}
}

// freezeInAClaim freezes the relay, the only one, at a moment when it holds a
// claim open.
func freezeInAClaim(t *testing.T, stage *scenario.Stage, relay *scenario.Relay) {
	t.Helper()
	scenario.Await(t, 30*time.Second, "a moment when the relay holds a claim", func() (bool, string) {
		relay.Freeze()
		// What the server is at work on is done within this pause.
		time.Sleep(100 * time.Millisecond)
		claims := scenario.One[int](t, stage.Database, `
SELECT count(DISTINCT l.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND a.datname = current_database() AND a.application_name = 'outbox-relay' AND a.state = 'idle in transaction'`)
		if claims == 0 {
			relay.Thaw()
		}
		return claims > 0, "it never does"
	})
}
