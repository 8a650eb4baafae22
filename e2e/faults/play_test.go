package faults_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
)

const (
	// patience is how long what has to happen may take on a busy machine.
	patience = 90 * time.Second
	// publishTimeout bounds a claim; holdMargin is what the relay adds to it on
	// the server's side.
	publishTimeout = 3 * time.Second
	holdMargin     = 5 * time.Second
	// workers is how many claims a relay has under way at most.
	workers = 2
)

// play is relays at work on a stage.
type play struct {
	*arena
	t     testing.TB
	stage *scenario.Stage
	// log is everything, main what the arena's own servers hold of it.
	log, main scenario.Log
	// topics and queues are main: one of them, as the arena has it.
	topics *scenario.KafkaLog
	queues *scenario.RabbitLog
	// second is the log of the second sink, if there is one.
	second *scenario.RabbitLog
	topic  string
	fleet  scenario.Fleet
	// together: other faults happen at the same time.
	together bool
}

// settings are those of the relays, with small batches, so that there is much
// to interrupt and little in flight.
func settings(more scenario.Settings) scenario.Settings {
	all := scenario.Settings{
		"outbox.batch_size": 50, "outbox.workers": workers, "outbox.publish_timeout": publishTimeout.String(),
		"failures.backoff.max": "2s",
	}
	for path, value := range more {
		all[path] = value
	}
	return all
}

// newPlay starts relays on a new stage of the arena.
func newPlay(t testing.TB, a *arena, relays, topics int, more scenario.Settings) *play {
	t.Helper()
	return start(t, a.newPlay(t, topics, false, settings(more)), relays)
}

// newPlayOfTwoSinks is newPlay with a second sink.
func newPlayOfTwoSinks(t testing.TB, a *arena, relays, topics int, more scenario.Settings) *play {
	t.Helper()
	return start(t, a.newPlay(t, topics, true, settings(more)), relays)
}

func start(t testing.TB, p *play, relays int) *play {
	t.Helper()
	t.Cleanup(func() {
		if err := p.heal(context.Background(), p.main.Topics()...); err != nil {
			t.Errorf("the servers are not what they were before: %v", err)
		}
	})
	t.Logf("seed: %s=%d", scenario.SeedVariable, p.stage.Seed)
	p.fleet = p.stage.StartFleet(relays)
	return p
}

// batch is how many rows a worker has in flight at most.
func (p *play) batch() int { return p.stage.Config.InFlight() / workers }

// inFlight is how many rows all relays have in flight at most.
func (p *play) inFlight() int { return len(p.fleet) * p.stage.Config.InFlight() }

// await polls condition until it is true. It returns an error rather than end
// the test, as faults run beside each other.
func await(ctx context.Context, what string, condition func(context.Context) (bool, string)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		done, state := condition(ctx)
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %v for %s: %s", patience, what, state)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// flows is G: it waits until the broker gets a message whose row was committed
// after this call.
func (p *play) flows(ctx context.Context) error {
	return p.flowsTo(ctx, "anywhere", func(scenario.Record) bool { return true })
}

// flowsIn is flows for a partition of the first topic.
func (p *play) flowsIn(ctx context.Context, partition int) error {
	return p.flowsTo(ctx, fmt.Sprintf("in partition %d", partition), func(r scenario.Record) bool {
		return r.Topic == p.topic && r.Partition == partition
	})
}

// flowsIntoTopic is flows for a topic or queue.
func (p *play) flowsIntoTopic(ctx context.Context, topic string) error {
	return p.flowsTo(ctx, "in "+topic, func(r scenario.Record) bool { return r.Topic == topic })
}

func (p *play) flowsTo(ctx context.Context, where string, there func(scenario.Record) bool) error {
	var newest int64
	if err := await(ctx, "the newest row", func(ctx context.Context) (bool, string) {
		err := p.stage.Database.Pool.QueryRow(ctx, `SELECT coalesce(max(id), 0) FROM truth`).Scan(&newest)
		return err == nil, fmt.Sprint(err)
	}); err != nil {
		return err
	}
	read := 0
	return await(ctx, "G: a message to arrive "+where, func(ctx context.Context) (bool, string) {
		records, err := p.log.Records(ctx)
		if err != nil {
			return false, err.Error()
		}
		for ; read < len(records); read++ {
			if r := records[read]; r.Sequence > newest && there(r) {
				return true, ""
			}
		}
		return false, fmt.Sprintf("none of %d records is newer than id %d", len(records), newest)
	})
}

// arrives waits until the broker has the row.
func (p *play) arrives(ctx context.Context, row scenario.Row) error {
	return await(ctx, fmt.Sprintf("id %d to arrive", row.ID), func(ctx context.Context) (bool, string) {
		records, err := p.log.Records(ctx)
		for i := range records {
			if records[i].MessageID == row.MessageID {
				return true, ""
			}
		}
		return false, fmt.Sprintf("it is not among %d records (%v)", len(records), err)
	})
}

// sleep waits, for faults whose length is what they are.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// between is a random time.
func between(random *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(random.Int64N(int64(most-least)))
}

// fault is one thing that goes wrong.
type fault struct {
	name string
	// inflict breaks something, watches what has to hold while it is broken, and
	// puts it right. It returns how many rows may have been sent twice for it.
	inflict func(ctx context.Context, p *play, random *rand.Rand) (duplicates int, err error)
}

// gaveUp is how many rows at most the relays say that they sent without learning
// what became of them, or could not mark. A machine that is busy enough breaks
// connections and leaders too, and what that costs is no fault of the relay's.
// One line in the log stands for up to two failures: the 1st, 2nd, 4th … is told.
func (p *play) gaveUp() (rows int) {
	for _, relay := range p.fleet {
		log := relay.Log()
		rows += 2 * p.batch() * (strings.Count(log, "not acknowledged in time") +
			strings.Count(log, "did not confirm in time") + strings.Count(log, "could not be marked"))
	}
	if rows > 0 {
		p.t.Logf("the relays gave batches up, of %d rows at most", rows)
	}
	return rows
}

// perform inflicts a fault on relays under load and checks everything.
func (p *play) perform(load scenario.Workload, inflict func(context.Context) (duplicates int, err error)) {
	t := p.t
	t.Helper()
	sampler := p.stage.StartSampler()
	load.Unreliable = true
	writers := p.stage.StartLoad(load)
	if err := p.flows(t.Context()); err != nil {
		t.Fatal(err)
	}
	duplicates, err := inflict(t.Context())
	if err != nil {
		t.Errorf("%v", err)
	}
	if err := p.flows(t.Context()); err != nil {
		t.Errorf("after the fault: %v", err)
	}
	writers.Stop()
	p.stage.Drain(patience)
	p.fleet.Stop()
	sampler.Stop()
	p.stage.Verify(duplicates + p.gaveUp())
}
