package faults_test

import (
	"context"
	"testing"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// kinds are all faults, by what suffers. Faults of different kinds can happen at
// the same time.
var kinds = []struct {
	name   string
	faults []fault
}{{"relays", relayFaults}, {"postgres", databaseFaults}, {"kafka", kafkaFaults}}

// Each fault by itself, on two relays under load.
func TestFaults(t *testing.T) {
	a := startArena(t)
	for _, group := range kinds[1:] { // relays': see relayFaults
		t.Run(group.name, func(t *testing.T) {
			for _, f := range group.faults {
				t.Run(f.name, func(t *testing.T) {
					p := newPlay(t, a, 2, 1, nil)
					p.perform(scenario.Workload{}, func(ctx context.Context) (int, error) {
						return f.inflict(ctx, p, p.stage.Random(1<<33))
					})
				})
			}
		})
	}
	t.Run("kafka/topic deleted and made again", func(t *testing.T) { playDeletedTopic(t, a) })
}
