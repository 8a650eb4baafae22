package faults_test

import (
	"context"
	"math/rand/v2"
	"time"
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
	victim.Launch()
	victim.AwaitAlive()
	return p.stage.Config.InFlight(), nil
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
func restartRelays(_ context.Context, p *play, _ *rand.Rand) (int, error) {
	for _, relay := range p.fleet {
		relay.Stop()
		relay.Launch()
		// A process that has only begun has no handler of signals: SIGTERM ends it.
		relay.AwaitAlive()
	}
	return 0, nil
}
