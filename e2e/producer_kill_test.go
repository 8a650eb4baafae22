package e2e_test

import (
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// Applications that die in the middle of a transaction leave nothing behind,
// and relays that die meanwhile lose nothing of what they had committed.
func TestKillsOfProducersAndRelays(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, smallBatches)
	fleet := stage.StartFleet(2)
	producers := scenario.Crew{stage.Producer(), stage.Producer()}
	for _, p := range producers {
		p.Start()
	}
	calm := stage.StartHarassing(producers)
	kills := stage.KillLoop(fleet, 6*time.Second)
	calm()
	producers.Stop()
	stage.Drain(30 * time.Second)
	fleet.Stop()
	if producers.Kills() == 0 {
		t.Error("no producer was killed")
	}
	stage.Verify(kills * stage.Config.InFlight())
}
