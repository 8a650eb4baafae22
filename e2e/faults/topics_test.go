package faults_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// playDeletedTopic deletes a topic and makes it again.
func playDeletedTopic(t *testing.T, a *arena) {
	playDeleted(t, a,
		func(ctx context.Context, p *play, gone string) error {
			p.topics.Deleted(gone)
			return p.cluster.DeleteTopic(ctx, gone)
		},
		func(ctx context.Context, p *play, gone string) error {
			if err := p.cluster.CreateTopic(ctx, gone, partitions, nil); err != nil {
				return err
			}
			p.topics.Repartitioned(gone, partitions)
			return nil
		})
}

// playDeleted removes one of two destinations and makes it again. Its rows wait
// meanwhile, unmarked, those of the other one go on, and nothing that was
// committed since is lost or sent twice. What the old one held went with it.
func playDeleted(t *testing.T, a *arena, remove, restore func(ctx context.Context, p *play, gone string) error) {
	p := newPlay(t, a, 2, 2, nil)
	ctx := t.Context()
	gone, other := p.topic, p.log.Topics()[1]
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// What is in it when it is deleted is read before.
	load := p.stage.StartLoad(steady)
	check(p.flowsIntoTopic(ctx, gone))
	load.Stop()
	p.stage.Drain(patience)
	p.stage.Records()
	check(remove(ctx, p, gone))

	const markedSQL = `SELECT count(*) FROM %s WHERE topic = $1 AND published_at IS NOT NULL`
	marked := func() int { return scenario.One[int](t, p.stage.Database, fmt.Sprintf(markedSQL, p.stage.Table), gone) }
	before := marked()
	load = p.stage.StartLoad(steady)
	for range 5 {
		check(p.flowsIntoTopic(ctx, other))
	}
	if n := marked(); n != before {
		t.Errorf("M: %d rows of a destination that does not exist were marked", n-before)
	}
	check(restore(ctx, p, gone))
	check(p.flowsIntoTopic(ctx, gone))
	load.Stop()
	p.stage.Drain(patience)
	p.fleet.Stop()
	p.stage.Verify(p.gaveUp())
}
