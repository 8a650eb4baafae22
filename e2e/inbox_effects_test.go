package e2e_test

import (
	"context"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/inbox"
)

// consumeLimit is how long consumers may take for what is left, with their
// groups' rebalances, on a busy machine.
const consumeLimit = 2 * time.Minute

// effectsOnce lets relays be killed, and consumers be killed, leave and join,
// all at random and under load, and checks that every message that was
// committed had one effect.
func effectsOnce(t *testing.T, stage *scenario.Stage, effects *scenario.Effects, crew scenario.Crew, ordered bool) {
	t.Helper()
	fleet := stage.StartFleet(2)
	load := stage.StartLoad(scenario.Workload{Rate: 100})
	calm := stage.StartHarassing(crew)
	stage.KillLoop(fleet, 8*time.Second)
	load.Stop()
	calm()
	stage.Drain(30 * time.Second)
	fleet.Stop()
	stage.Consumed(effects, crew, consumeLimit)
	if crew.Kills() < 5 {
		t.Errorf("consumers were killed %d times, which tests little", crew.Kills())
	}
	stage.VerifyEffects(effects, ordered)
}

// Each life of a consumer ends between a commit and its acknowledgement.
func TestEffectsWhileConsumersCrash(t *testing.T) {
	for name, test := range map[string]struct {
		newStage  func(testing.TB, scenario.Settings) *scenario.Stage
		ordered   bool
		consumers int
		options   scenario.ConsumerOptions
	}{
		// A group waits for a dead member, so crashes are fewer there.
		"kafka": {scenario.NewKafkaStage, true, 3, scenario.ConsumerOptions{CrashEvery: 100}},
		"kafka in batches": {scenario.NewKafkaStage, true, 2, scenario.ConsumerOptions{
			CrashEvery: 20, Arguments: []string{"--batch", "20"},
		}},
		"kafka with handlers that fail": {scenario.NewKafkaStage, true, 4, scenario.ConsumerOptions{CrashEvery: 100, FailPercent: 10}},
		"rabbitmq":                      {scenario.NewRabbitStage, false, 3, scenario.ConsumerOptions{CrashEvery: 40}},
		"rabbitmq in batches": {scenario.NewRabbitStage, false, 2, scenario.ConsumerOptions{
			CrashEvery: 10, Arguments: []string{"--batch", "20"},
		}},
		"rabbitmq with handlers that fail": {scenario.NewRabbitStage, false, 4, scenario.ConsumerOptions{
			CrashEvery: 40, FailPercent: 10, Arguments: []string{"--requeue", "--concurrency", "3"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stage := test.newStage(t, nil)
			effects := stage.NewEffects()
			effectsOnce(t, stage, effects, stage.StartCrew(effects, test.consumers, test.options), test.ordered)
		})
	}
}

// Producers, relays and consumers all die at random.
func TestEffectsWhileEverythingIsKilled(t *testing.T) {
	for _, test := range bothBrokers {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			stage := test.newStage(t, smallBatches)
			effects := stage.NewEffects()
			producers := scenario.Crew{stage.Producer(), stage.Producer()}
			for _, p := range producers {
				p.Start()
			}
			fleet := stage.StartFleet(2)
			crew := stage.StartCrew(effects, 2, scenario.ConsumerOptions{})
			calmProducers, calmConsumers := stage.StartHarassing(producers), stage.StartHarassing(crew)
			stage.KillLoop(fleet, 8*time.Second)
			calmProducers()
			producers.Stop()
			calmConsumers()
			stage.Drain(30 * time.Second)
			fleet.Stop()
			stage.Consumed(effects, crew, consumeLimit)
			if producers.Kills() == 0 || crew.Kills() == 0 {
				t.Errorf("producers were killed %d times, consumers %d times", producers.Kills(), crew.Kills())
			}
			stage.VerifyEffects(effects, test.ordered)
		})
	}
}

// bothBrokers are what a scenario plays on. On Kafka the effects of a key have
// an order; a queue with several consumers gives none.
var bothBrokers = []struct {
	name     string
	newStage func(testing.TB, scenario.Settings) *scenario.Stage
	ordered  bool
}{
	{"kafka", scenario.NewKafkaStage, true},
	{"rabbitmq", scenario.NewRabbitStage, false},
}

// The broker closes all connections, again and again: what was delivered and
// not acknowledged comes again.
func TestEffectsWhileRabbitMQDropsConnections(t *testing.T) {
	t.Parallel()
	server, err := servers.StartRabbitMQ(t.Context(), servers.RabbitMQOptions{})
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, server)
	stage := scenario.NewStage(t, scenario.NewDatabase(t), scenario.NewRabbitQueue(t, server.URL("/"), nil), nil)
	effects := stage.NewEffects()
	fleet := stage.StartFleet(2)
	crew := stage.StartCrew(effects, 3, scenario.ConsumerOptions{FailPercent: 10, Arguments: []string{"--concurrency", "2"}})
	load := stage.StartLoad(scenario.Workload{Rate: 100})
	for range 5 {
		before := distinct(t, effects)
		scenario.Await(t, time.Minute, "effects", func() (bool, string) { return distinct(t, effects) > before+20, "there are few" })
		if err := server.CloseAllConnections(t.Context(), "test"); err != nil {
			t.Fatal(err)
		}
	}
	load.Stop()
	stage.Drain(60 * time.Second)
	fleet.Stop()
	stage.Consumed(effects, crew, consumeLimit)
	stage.VerifyEffects(effects, false)
}

func distinct(t *testing.T, effects *scenario.Effects) int {
	t.Helper()
	n, err := effects.Distinct(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Old ids are removed while messages are processed, and no young one is.
func TestEffectsWhileTheInboxIsPruned(t *testing.T) {
	for _, test := range bothBrokers {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			stage := test.newStage(t, nil)
			effects := stage.NewEffects()
			const old = 30_000
			effects.Exec(t, `
INSERT INTO inbox (consumer, message_id, received_at, processed_at)
SELECT $1, gen_random_uuid(), now() - interval '2 days', now() - interval '2 days' FROM generate_series(1, $2)`, effects.Name, old)
			crew := stage.StartCrew(effects, 3, scenario.ConsumerOptions{CrashEvery: 100})
			pruned := startPruning(t, effects)
			relay := stage.Start()
			stage.Load(scenario.Workload{Rate: 150}, 4*time.Second)
			stage.Drain(30 * time.Second)
			relay.Stop()
			stage.Consumed(effects, crew, consumeLimit)
			if n := pruned(); n != old {
				t.Errorf("%d ids were pruned, want the %d old ones", n, old)
			}
			stage.VerifyEffects(effects, test.ordered)
		})
	}
}

// startPruning prunes ids of more than a day over and over, until the function
// that it returns is called, which says how many there were.
func startPruning(t *testing.T, effects *scenario.Effects) (stop func() int64) {
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan int64, 1)
	go func() {
		box := &inbox.Inbox{Retention: 24 * time.Hour}
		var total int64
		for {
			n, err := box.Prune(context.WithoutCancel(ctx), effects.Pool)
			total += n
			if err != nil {
				t.Errorf("prune: %v", err)
			}
			if err != nil || ctx.Err() != nil {
				break
			}
		}
		result <- total
	}()
	stop = func() int64 {
		cancel()
		n := <-result
		result <- n
		return n
	}
	t.Cleanup(func() { stop() })
	return stop
}

// The check can fail: without an inbox what comes again has its effect again.
func TestEffectsWithoutAnInboxAreFoundTwice(t *testing.T) {
	for _, test := range bothBrokers {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			stage := test.newStage(t, nil)
			effects := stage.NewEffects()
			relay := stage.Start()
			crew := stage.StartCrew(effects, 2, scenario.ConsumerOptions{WithoutInbox: true, CrashEvery: 100})
			stage.Load(scenario.Workload{Rate: 150}, 4*time.Second)
			stage.Drain(30 * time.Second)
			relay.Stop()
			scenario.Await(t, consumeLimit, "a crash", func() (bool, string) { return crew.Kills() > 0, "there was none" })
			// A consumer that crashes before it has committed an offset begins where it
			// began before. Without an inbox it may do so for ever.
			crew.Stop()
			stage.Consumed(effects, stage.StartCrew(effects, 2, scenario.ConsumerOptions{WithoutInbox: true}), consumeLimit)
			findings := stage.CheckEffects(effects, false)
			t.Logf("%d crashes", crew.Kills())
			if crew.Kills() == 0 || findings.Duplicates < crew.Kills() {
				t.Errorf("%d effects came again, want one at least for each of %d crashes", findings.Duplicates, crew.Kills())
			}
			if len(findings.Violations) != findings.Duplicates {
				t.Errorf("%d effects came again and %d violations were found:\n%s", findings.Duplicates, len(findings.Violations), findings)
			}
		})
	}
}
