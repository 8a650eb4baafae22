package faults_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// playDeletedQueue has a policy delete a queue that nobody uses, and makes it
// again. Its rows wait meanwhile, unmarked, those of the other queue go on, and
// nothing that was committed since is lost or sent twice. What the old queue held
// went with it.
func playDeletedQueue(t *testing.T, a *arena) {
	p := newPlay(t, a, 2, 2, nil)
	ctx := t.Context()
	gone, other := p.topic, p.log.Topics()[1]
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// What is in the queue when it is deleted is read before.
	load := p.stage.StartLoad(scenario.Workload{Writers: 2})
	check(p.flowsIntoTopic(ctx, gone))
	load.Stop()
	p.stage.Drain(patience)
	p.stage.Records()
	p.queues.Neglect(gone) // a look would be a use
	_, err := p.rabbit.Control(ctx, "set_policy", "expire", "^"+gone+"$", `{"expires":500}`, "--apply-to", "queues")
	check(err)
	check(await(ctx, "the policy to delete the queue", func(ctx context.Context) (bool, string) {
		queues, err := p.rabbit.Control(ctx, "list_queues", "name")
		return err == nil && !strings.Contains(queues, gone), fmt.Sprintf("%s (%v)", queues, err)
	}))
	_, err = p.rabbit.Control(ctx, "clear_policy", "expire")
	check(err)
	p.queues.Tend(gone)

	const markedSQL = `SELECT count(*) FROM %s WHERE topic = $1 AND published_at IS NOT NULL`
	marked := func() int { return scenario.One[int](t, p.stage.Database, fmt.Sprintf(markedSQL, p.stage.Table), gone) }
	before := marked()
	load = p.stage.StartLoad(scenario.Workload{Writers: 2})
	for range 5 {
		check(p.flowsIntoTopic(ctx, other))
	}
	if n := marked(); n != before {
		t.Errorf("M: %d rows of a queue that does not exist were marked", n-before)
	}
	check(p.queues.Declare(gone))
	check(p.flowsIntoTopic(ctx, gone))
	load.Stop()
	p.stage.Drain(patience)
	p.fleet.Stop()
	p.stage.Verify(p.gaveUp())
}
