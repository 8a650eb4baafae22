package faults_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// playDeletedQueue has a policy delete a queue that nobody uses, and makes it
// again.
func playDeletedQueue(t *testing.T, a *arena) {
	playDeleted(t, a,
		func(ctx context.Context, p *play, gone string) error {
			p.queues.Neglect(gone) // a look would be a use
			if _, err := p.rabbit.Control(ctx, "set_policy", "expire", "^"+gone+"$", `{"expires":500}`, "--apply-to", "queues"); err != nil {
				return err
			}
			if err := await(ctx, "the policy to delete the queue", func(ctx context.Context) (bool, string) {
				queues, err := p.rabbit.Control(ctx, "list_queues", "name")
				return err == nil && !strings.Contains(queues, gone), fmt.Sprintf("%s (%v)", queues, err)
			}); err != nil {
				return err
			}
			_, err := p.rabbit.Control(ctx, "clear_policy", "expire")
			p.queues.Tend(gone)
			return err
		},
		func(_ context.Context, p *play, gone string) error { return p.queues.Declare(gone) })
}
