package faults_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
)

const (
	// shortMix is how long faults are inflicted by `go test` without -soak, and
	// longMix in each repetition of a soak.
	shortMix, longMix = 12 * time.Second, 40 * time.Second
)

// injected counts what was inflicted.
type injected struct {
	mu     sync.Mutex
	counts map[string]int
	// duplicates is how many rows may have been sent twice for it.
	duplicates int
}

func (i *injected) add(name string, duplicates int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.counts[name]++
	i.duplicates += duplicates
}

// String lists the counts, most first.
func (i *injected) String() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	names := slices.SortedFunc(maps.Keys(i.counts), func(a, b string) int {
		if n := i.counts[b] - i.counts[a]; n != 0 {
			return n
		}
		return strings.Compare(a, b)
	})
	var parts []string
	for _, name := range names {
		parts = append(parts, fmt.Sprintf("%s %d", name, i.counts[name]))
	}
	return strings.Join(parts, ", ")
}

// soak inflicts random faults on the relays, their database and their broker at
// the same time, and checks everything; with -soak again and again, on new
// databases and topics and with other settings, half of the time for each broker.
// Each repetition prints its seed.
func soak(t *testing.T, a *arena) {
	total := &injected{counts: map[string]int{}}
	began, long := time.Now(), *soakFor/2
	repetitions, committed, duplicates := 0, 0, 0
	for first := true; first || time.Since(began) < long; first = false {
		mix := shortMix
		if long > 0 {
			mix = longMix
		}
		seed := scenario.Seed(t)
		passed := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Setenv(scenario.SeedVariable, fmt.Sprint(seed))
			rows, again := playMix(t, a, mix, total)
			committed += rows
			duplicates += again
		})
		repetitions++
		if !passed {
			break // what comes after a violation says nothing more
		}
	}
	t.Logf("%d repetitions in %v: %d messages committed, %d sent twice, of %d that may have been; inflicted: %s",
		repetitions, time.Since(began).Round(time.Second), committed, duplicates, total.duplicates, total)
}

// playMix is one repetition. It returns how many messages were committed and how
// many of them were sent twice.
func playMix(t *testing.T, a *arena, mix time.Duration, total *injected) (committed, duplicates int) {
	// The stage draws from the same seed, for other purposes.
	random := rand.New(rand.NewPCG(scenario.Seed(t), 1<<40)) //nolint:gosec // repeatable is what is wanted
	more := scenario.Settings{
		"outbox.batch_size":   []int{10, 50, 200}[random.IntN(3)],
		"outbox.on_published": []string{"mark", "delete"}[random.IntN(2)],
		"outbox.notify":       random.IntN(2) == 0,
	}
	relays, topics := 2+random.IntN(2), 1+random.IntN(2)
	if a.rabbit == nil {
		more["sinks.main.kafka.max_message_bytes"] = kafkaLimit
	} else {
		topics = 2 // one of them is full at times
	}
	second := a.secondBroker != nil && random.IntN(2) == 0
	p := start(t, a.newPlay(t, topics, second, settings(more)), relays)
	p.together = true
	t.Logf("%d relays with %v, a second sink: %t", relays, more, second)
	sampler := p.stage.StartSampler()
	load := p.stage.StartLoad(scenario.Workload{Unreliable: true, Notify: random.IntN(2) == 0, Rate: 90})

	own := &injected{counts: map[string]int{}}
	ctx, cancel := context.WithTimeout(t.Context(), mix)
	defer cancel()
	var lanes sync.WaitGroup
	for i, kind := range p.kinds() {
		random := p.stage.Random(1<<41 + uint64(i)) //nolint:gosec // a small number
		lanes.Go(func() {
			for ctx.Err() == nil {
				f := kind.faults[random.IntN(len(kind.faults))]
				name := kind.name + " " + f.name
				// What has begun is put right, also after the end of the mix.
				duplicates, err := f.inflict(t.Context(), p, random)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				own.add(name, duplicates)
				total.add(name, duplicates)
				sleep(ctx, between(random, 0, time.Second))
			}
		})
	}
	lanes.Wait()
	t.Logf("inflicted: %s", own)
	if err := p.flows(t.Context()); err != nil {
		t.Errorf("after all faults: %v", err)
	}
	load.Stop()
	if err := a.heal(t.Context(), p.main.Topics()...); err != nil {
		t.Fatal(err)
	}
	for _, relay := range p.fleet {
		relay.AwaitReady()
	}
	p.stage.Drain(patience)
	p.fleet.Stop()
	sampler.Stop()
	duplicates = p.stage.Verify(own.duplicates + p.gaveUp())
	return scenario.One[int](t, p.stage.Database, `SELECT count(*) FROM truth`), duplicates
}
