package faults_test

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// relayFaults are what happens to relays. The soak has them; by themselves they
// are played in the package above: TestKills…, TestFrozenRelay and
// TestGracefulStopsUnderLoadCauseNoDuplicates.
var relayFaults = []fault{
	{"relay killed", killRelay},
	{"relay frozen", freezeRelay},
	{"relays restarted in turns", restartRelays},
}

func killRelay(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	victim := p.fleet[random.IntN(len(p.fleet))]
	victim.Kill()
	sleep(ctx, between(random, 0, 500*time.Millisecond))
	return p.stage.Config.InFlight(), launch(ctx, victim)
}

// freezeRelay stops a relay for longer than the server bears with its claims,
// and lets it go on.
func freezeRelay(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	victim := p.fleet[random.IntN(len(p.fleet))]
	victim.Freeze()
	sleep(ctx, publishTimeout+holdMargin+between(random, 0, 3*time.Second))
	err := p.flows(ctx) // the others took over
	victim.Thaw()
	return p.stage.Config.InFlight(), err
}

// restartRelays stops and starts each relay in order, as an upgrade does.
func restartRelays(ctx context.Context, p *play, _ *rand.Rand) (int, error) {
	for _, relay := range p.fleet {
		relay.Stop()
		if err := launch(ctx, relay); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// launch starts a relay's process and waits until it answers, whatever it says:
// one that has only begun has no handler of signals, so that SIGTERM ends it.
func launch(ctx context.Context, relay *scenario.Relay) error {
	relay.Launch()
	return await(ctx, relay.Name+" to answer", func(context.Context) (bool, string) {
		return relay.Get("/livez") != 0, "it does not"
	})
}
