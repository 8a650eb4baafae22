package faults_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/outbox"
)

// oldBinaryVariable names the relay of an earlier version, which then works beside
// that of the tests. Where it is unset, only their configurations differ.
const oldBinaryVariable = "RELAY_TEST_OLD_BINARY"

const (
	// deployed is how many relays work side by side, and poisoners how many write
	// what the broker refuses.
	deployed, poisoners = 4, 2
	// deployedKeys is how many keys there are: few, so that much waits behind a
	// message that is refused.
	deployedKeys = 10
	// deployment is how long they are replaced, and longDeployment in a soak.
	deployment, longDeployment = 20 * time.Second, 2 * time.Minute
)

// Relays of different orderings, ways to mark, numbers of workers, batch sizes,
// routes and policies, and of two versions where an old binary is named, work side
// by side and are replaced one after the other, as in a rolling deployment. Some
// messages are too large for the broker: they are retried, parked, dropped or
// moved to the dead letters by whichever relay has them, and cancelled, skipped
// and retried by operators. Order per key is kept, as each of them promises it,
// and nothing is sent twice, as all of them stop in order.
func TestMixedRelaysDuringADeployment(t *testing.T) {
	stage := scenario.NewKafkaStage(t, settings(scenario.Settings{
		"outbox.batch_size": 200, "sinks.main.kafka.max_message_bytes": kafkaLimit,
		"outbox.on_published": "delete", // of some; the sampler needs to know
	}))
	p := &play{t: t, stage: stage, log: stage.Log, main: stage.Log, topic: stage.Topic()}
	t.Logf("seed: %s=%d", scenario.SeedVariable, stage.Seed)
	random := stage.Random(1 << 34)
	slots := make([]*scenario.Relay, deployed)
	for i := range slots {
		slots[i] = p.deploy(random, i)
		slots[i].Launch()
	}
	for _, relay := range slots {
		relay.AwaitReady()
	}
	sampler := stage.StartSampler()
	load := stage.StartLoad(scenario.Workload{Keys: deployedKeys})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var poisoning sync.WaitGroup
	poisoned := make([]*poisoner, poisoners)
	for i := range poisoned {
		poisoned[i] = &poisoner{play: p, random: stage.Random(1<<34 + 1 + uint64(i)), operator: stage.Relay(nil)}
		poisoning.Go(func() { poisoned[i].run(ctx) })
	}

	length := deployment
	if *soakFor > 0 {
		length = longDeployment
	}
	replaced := 0
	for deadline := time.Now().Add(length); time.Now().Before(deadline); replaced++ {
		sleep(ctx, between(random, 200*time.Millisecond, 1500*time.Millisecond))
		slot := replaced % deployed
		next := p.deploy(random, random.IntN(100))
		if random.IntN(2) == 0 { // a surge first, or a gap
			slots[slot].Stop()
			next.Start()
		} else {
			next.Start()
			slots[slot].Stop()
		}
		slots[slot] = next
	}
	if err := p.flows(ctx); err != nil {
		t.Error(err)
	}
	load.Stop()
	cancel()
	poisoning.Wait()
	refused := 0
	for _, one := range poisoned {
		one.cancel(one.all...)
		refused += len(one.all)
	}
	stage.Drain(patience)
	scenario.Fleet(slots).Stop()
	sampler.Stop()
	t.Logf("%d relays were replaced; %d messages were refused for good", replaced, refused)
	stage.Verify(p.gaveUp())
}

// deploy returns a relay with a configuration of its own, which does not run yet.
// The first two have one ordering each.
func (p *play) deploy(random *rand.Rand, number int) *scenario.Relay {
	p.t.Helper()
	ordering := []string{"key", "total"}[random.IntN(2)]
	if number < 2 {
		ordering = []string{"key", "total"}[number]
	}
	more := scenario.Settings{
		"outbox.ordering":        ordering,
		"outbox.on_published":    []string{"mark", "delete"}[random.IntN(2)],
		"outbox.workers":         1 + random.IntN(6),
		"outbox.batch_size":      []int{5, 20, 50, 200}[random.IntN(4)],
		"outbox.notify":          random.IntN(2) == 0,
		"failures.policy":        []string{"park", "park", "park", "skip", "dead_letter"}[random.IntN(5)],
		"failures.max_attempts":  1 + random.IntN(3),
		"failures.backoff.max":   []string{"300ms", "2s"}[random.IntN(2)],
		"outbox.publish_timeout": publishTimeout.String(),
	}
	switch random.IntN(3) {
	case 0:
		more["routes"] = []scenario.Config{{"match": scenario.Config{"topic": p.topic}, "sink": "main", "destination": "{topic}"}}
	case 1:
		more["routes"] = []scenario.Config{
			{"match": scenario.Config{"topic": "*", "type": "Tested"}, "sink": "main", "on_failure": "dead_letter"},
			{"match": scenario.Config{"topic": "*"}, "sink": "main"},
		}
	}
	relay := p.stage.Relay(more)
	if old := os.Getenv(oldBinaryVariable); old != "" && random.IntN(2) == 0 {
		relay.Binary = old
	}
	p.fleet = append(p.fleet, relay)
	p.t.Logf("%s (old: %t): ordering %v, on_published %v, %v workers, batches of %v, policy %v after %v attempts, routes %v", relay.Name, relay.Binary != "",
		ordering, more["outbox.on_published"], more["outbox.workers"], more["outbox.batch_size"], more["failures.policy"], more["failures.max_attempts"], more["routes"] != nil)
	return relay
}

// poisoner writes messages that are too large about the keys that everybody
// writes about, and deals with them as operators do.
type poisoner struct {
	*play
	random   *rand.Rand
	operator *scenario.Relay
	all      []int64
}

func (p *poisoner) run(ctx context.Context) {
	for ctx.Err() == nil {
		sleep(ctx, between(p.random, 50*time.Millisecond, 400*time.Millisecond))
		id, message, err := p.insert(context.WithoutCancel(ctx))
		if err != nil {
			p.t.Errorf("a message that is too large: %v", err)
			return
		}
		p.all = append(p.all, id)
		sleep(ctx, between(p.random, 0, 2500*time.Millisecond))
		// Whether it is still there is the relays' business.
		switch p.random.IntN(4) {
		case 0:
			p.operator.Command("parked", "skip", "--message-id", message.String(), "--yes")
		case 1:
			p.operator.Command("parked", "retry", "--message-id", message.String(), "--yes")
		default:
			p.cancel(id)
		}
	}
}

// insert commits a message that is too large for the broker. It has no truth, as
// it must never be there.
func (p *poisoner) insert(ctx context.Context) (id int64, message outbox.UUID, err error) {
	key := fmt.Sprintf("key-%d", p.random.IntN(deployedKeys))
	err = pgx.BeginFunc(ctx, p.stage.Database.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO aggregates VALUES ($1, $2, 1) ON CONFLICT (topic, key) DO UPDATE SET sequence = aggregates.sequence + 1`, p.topic, key); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `INSERT INTO `+p.stage.Table+` (topic, key, type, payload) VALUES ($1, $2, 'Tested', $3) RETURNING id, message_id`,
			p.topic, key, []byte(strings.Repeat("x", kafkaLimit+1))).Scan(&id, (*[16]byte)(&message))
	})
	p.stage.Undo(message, "it is too large for the broker")
	return id, message, err
}

// cancel deletes those of the messages that are pending.
func (p *poisoner) cancel(ids ...int64) {
	p.stage.Database.Exec(p.t, `DELETE FROM `+p.stage.Table+` WHERE id = ANY ($1) AND published_at IS NULL`, ids)
}
