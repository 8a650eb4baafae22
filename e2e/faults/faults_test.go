package faults_test

import (
	"context"
	"slices"
	"testing"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// kind is the faults of what suffers. Faults of different kinds can happen at
// the same time.
type kind struct {
	name   string
	faults []fault
}

// kinds are all faults that may happen in the play.
func (p *play) kinds() []kind {
	kinds := []kind{{"relays", relayFaults}, {"rows", poisonFaults}, {"postgres", databaseFaults}}
	if p.rabbit != nil {
		return append(kinds, kind{"rabbitmq", slices.Concat(rabbitFaults, nodeFaults)})
	}
	kinds = append(kinds, kind{"kafka", slices.Concat(kafkaFaults, brokerSettings)})
	if p.second != nil {
		kinds = append(kinds, kind{"second sink", secondFaults})
	}
	return kinds
}

// steady is the load while a fault is inflicted: enough for every relay to have
// something in flight at any time, and no more than two cores bear beside it.
var steady = scenario.Workload{Rate: 75}

// String is the fault's name.
func (f fault) String() string { return f.name }

// inflictEach inflicts faults by themselves, half of the kind, on two relays under
// load.
func inflictEach(t *testing.T, a *arena, topics int, of kind) {
	t.Run(of.name, func(t *testing.T) {
		for _, f := range scenario.Some(t, (len(of.faults)+1)/2, of.faults...) {
			t.Run(f.name, func(t *testing.T) {
				p := newPlay(t, a, 2, topics, nil)
				p.perform(steady, func(ctx context.Context) (int, error) {
					return f.inflict(ctx, p, p.stage.Random(1<<33))
				})
			})
		}
	})
}

// staged is a fault that needs a play of its own.
type staged struct {
	name string
	play func(*testing.T, *arena)
}

// String is the fault's name.
func (s staged) String() string { return s.name }

// The faults of relays are not played here: see relayFaults. Neither are those of
// rows, which are in the random mix and in TestKafkaPoison and TestRabbitMQPoison.
func TestFaults(t *testing.T) {
	a := startKafkaArena(t)
	inflictEach(t, a, 1, kind{"postgres", databaseFaults})
	inflictEach(t, a, 1, kind{"kafka", kafkaFaults})
	for _, s := range scenario.Some(t, 3, []staged{
		{"kafka/topic deleted and made again", playDeletedTopic},
		{"kafka/clock skew", playClockSkew},
		{"kafka/quota", playQuota},
		{"postgres/privilege to mark revoked", playRevokedMarks},
		{"two sinks", playTwoSinks},
	}...) {
		t.Run(s.name, func(t *testing.T) { s.play(t, a) })
	}
	t.Run("mix", func(t *testing.T) { soak(t, a) })
}

func TestFaultsOfRabbitMQ(t *testing.T) {
	a := startRabbitArena(t)
	inflictEach(t, a, 2, kind{"rabbitmq", rabbitFaults})
	t.Run("rabbitmq/queue deleted and made again", func(t *testing.T) { playDeletedQueue(t, a) })
	t.Run("mix", func(t *testing.T) { soak(t, a) })
}
