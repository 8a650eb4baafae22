package faults_test

import (
	"fmt"
	"testing"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// playDeletedTopic deletes a topic and makes it again. Its rows wait meanwhile,
// unmarked, those of the other topic go on, and nothing that was committed since
// is lost or sent twice. What the old topic held went with it.
func playDeletedTopic(t *testing.T, a *arena) {
	p := newPlay(t, a, 2, 2, nil)
	ctx := t.Context()
	gone, other := p.topic, p.log.Topics()[1]
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// What is in the topic when it is deleted is read before.
	load := p.stage.StartLoad(scenario.Workload{Writers: 2})
	check(p.flowsIntoTopic(ctx, gone))
	load.Stop()
	p.stage.Drain(patience)
	p.stage.Records()
	p.topics.Deleted(gone)
	check(p.cluster.DeleteTopic(ctx, gone))

	const markedSQL = `SELECT count(*) FROM %s WHERE topic = $1 AND published_at IS NOT NULL`
	marked := func() int { return scenario.One[int](t, p.stage.Database, fmt.Sprintf(markedSQL, p.stage.Table), gone) }
	before := marked()
	load = p.stage.StartLoad(scenario.Workload{Writers: 2})
	for range 5 {
		check(p.flowsIntoTopic(ctx, other))
	}
	if n := marked(); n != before {
		t.Errorf("M: %d rows of a topic that does not exist were marked", n-before)
	}
	check(p.cluster.CreateTopic(ctx, gone, partitions, nil))
	p.topics.Repartitioned(gone, partitions)
	check(p.flowsIntoTopic(ctx, gone))
	load.Stop()
	p.stage.Drain(patience)
	p.fleet.Stop()
	p.stage.Verify(p.gaveUp())
}
