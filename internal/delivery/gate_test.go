package delivery

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// gateTest is a gate whose monitor does not run, and who it calls.
type gateTest struct {
	*gate
	broker  *broker
	journal *journal
	changes int
	up      bool
}

func newGateTest() *gateTest {
	g := &gateTest{broker: &broker{}, journal: newJournal()}
	g.gate = newGate("main", g.broker, steady, slog.New(g.journal), func() { g.changes++ }, func(up bool) { g.up = up })
	return g
}

// fail and succeed are of a batch that was claimed just now.
func (g *gateTest) fail()    { g.failed(errConnection, time.Now(), g.closings) }
func (g *gateTest) succeed() { g.succeeded(time.Now(), g.closings) }

func (g *gateTest) expect(t *testing.T, state gateState, passes bool) {
	t.Helper()
	if g.state != state || g.passes() != passes {
		t.Errorf("state %d, passes %t; want %d, %t", g.state, g.passes(), state, passes)
	}
}

func (g *gateTest) expectLines(t *testing.T, away, back int) {
	t.Helper()
	if n := len(g.journal.having("WARN sink is away", "sink=main")); n != away {
		t.Errorf("%d lines say that the sink is away, want %d: %q", n, away, g.journal.shared.all)
	}
	if n := len(g.journal.having("INFO sink is back", "sink=main")); n != back {
		t.Errorf("%d lines say that the sink is back, want %d: %q", n, back, g.journal.shared.all)
	}
}

func TestGateOpensHalfwayAfterPublishFailed(t *testing.T) {
	g := newGateTest()
	g.expect(t, open, true)
	g.fail()
	g.expect(t, closed, false)
	g.expectLines(t, 1, 0)

	g.step(t.Context()) // the ping succeeds
	g.expect(t, halfOpen, true)
	if g.changes != 1 {
		t.Errorf("%d changes were told, want 1", g.changes)
	}
	g.begin() // one batch tries it
	g.expect(t, halfOpen, false)
	g.step(t.Context()) // and no ping says anything meanwhile
	g.expect(t, halfOpen, false)

	g.fail() // it answers, but takes nothing
	g.expect(t, closed, false)
	g.expectLines(t, 1, 0)
	if pause := g.untilStep(); pause != 2*steady.Initial {
		t.Errorf("the second pause is %s, want %s", pause, 2*steady.Initial)
	}
	g.step(t.Context())
	g.begin()
	g.succeed()
	g.expect(t, open, true)
	g.expectLines(t, 1, 1)
	if g.changes != 3 || !g.up {
		t.Errorf("%d changes were told, up %t; want 3, true", g.changes, g.up)
	}
}

// A ping that fails after a publish did must not make the next one that succeeds
// open the gate for everybody.
func TestGateOpensHalfwayAfterPublishAndThenPingsFailed(t *testing.T) {
	g := newGateTest()
	g.fail()
	g.broker.away = errConnection
	g.step(t.Context())
	g.expect(t, closed, false)
	g.broker.away = nil
	g.step(t.Context())
	g.expect(t, halfOpen, true)
}

// Batches that began before the broker went away say nothing about it since.
func TestGateIgnoresBatchesThatBeganBeforeItClosed(t *testing.T) {
	g := newGateTest()
	first, second := g.begin(), g.begin()
	g.failed(errConnection, time.Now(), first)
	g.succeeded(time.Now(), second)
	g.expect(t, closed, false)
	g.step(t.Context())
	probe := g.begin()
	g.failed(errConnection, time.Now(), second)
	g.expect(t, halfOpen, false)
	if pause := g.backoff.pause(g.failures); pause != steady.Initial {
		t.Errorf("the pause is %s, want %s", pause, steady.Initial)
	}
	g.succeeded(time.Now(), probe)
	g.expect(t, open, true)
}

// Part of a sink is there: batches get through and fail in turns.
func TestGatePausesLongerWhileSomeBatchesGetThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateTest()
		for i := range 4 {
			g.fail()
			if pause, want := g.untilStep(), steady.pause(i+1); pause != want {
				t.Errorf("failure %d: the pause is %s, want %s", i+1, pause, want)
			}
			g.step(t.Context())
			g.begin()
			g.succeed()
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(2 * time.Second) // longer than the last pause
		g.fail()
		if pause := g.untilStep(); pause != steady.Initial {
			t.Errorf("after it was open for long the pause is %s, want %s", pause, steady.Initial)
		}
	})
}

func TestGateOpensAtOnceAfterPingsFailed(t *testing.T) {
	g := newGateTest()
	g.broker.away = errConnection
	for range 3 {
		g.step(t.Context())
		g.expect(t, closed, false)
	}
	if pause := g.untilStep(); pause != 4*steady.Initial {
		t.Errorf("the third pause is %s, want %s", pause, 4*steady.Initial)
	}
	g.expectLines(t, 1, 0)
	g.broker.away = errNoLeader
	g.step(t.Context())
	g.expectLines(t, 2, 0) // another reason is news
	g.broker.away = nil
	g.step(t.Context())
	g.expect(t, open, true)
	g.expectLines(t, 2, 1)
	if g.changes != 1 {
		t.Errorf("%d changes were told, want 1", g.changes)
	}
}

func TestGateCountsBatchesThatFailTogetherOnce(t *testing.T) {
	g := newGateTest()
	together := g.begin()
	for range 4 { // as many workers
		g.failed(errConnection, time.Now(), together)
	}
	if pause := g.untilStep(); pause != steady.Initial {
		t.Errorf("the first pause is %s, want %s", pause, steady.Initial)
	}
	g.expectLines(t, 1, 0)
}

func TestGateDoesNotBlameTheSinkForAStop(t *testing.T) {
	g := newGateTest()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g.broker.away = context.Canceled
	g.step(ctx)
	g.expect(t, open, true)
	g.expectLines(t, 0, 0)
}

func TestGateMonitorPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateTest()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		began := time.Now()
		go g.monitor(ctx)
		// at checks how long after the beginning each ping was.
		at := func(what string, want ...time.Duration) {
			t.Helper()
			synctest.Wait()
			g.broker.mutex.Lock()
			defer g.broker.mutex.Unlock()
			var got []time.Duration
			for _, ping := range g.broker.pings {
				got = append(got, ping.Sub(began))
			}
			g.broker.pings = nil
			if len(got) != len(want) {
				t.Fatalf("%s: pings at %v, want %v", what, got, want)
			}
			for i := range got {
				if got[i] != want[i] {
					t.Errorf("%s: pings at %v, want %v", what, got, want)
					return
				}
			}
		}
		time.Sleep(5 * time.Second)
		at("silent", 0, 2*time.Second, 4*time.Second)

		g.succeed() // messages flow
		time.Sleep(1500 * time.Millisecond)
		g.succeed()
		time.Sleep(1500 * time.Millisecond) // 8 s
		at("while messages flow")

		g.broker.set(func(b *broker) { b.away = errConnection })
		g.fail()
		time.Sleep(1500 * time.Millisecond)
		at("away", 8200*time.Millisecond, 8600*time.Millisecond, 9400*time.Millisecond)
		cancel()
		synctest.Wait()
	})
}

// A broker that was away for long is found to be back at once; one that answers
// and refuses messages is asked ever less often.
func TestGateFindsOutSoonThatASilentBrokerIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateTest()
		g.backoff = Backoff{Initial: 200 * time.Millisecond, Max: 30 * time.Second, Multiplier: 2}
		g.fail()
		for range 10 {
			g.pinged(errConnection, time.Now())
			time.Sleep(g.untilStep())
		}
		if pause := g.untilStep(); pause != pingInterval {
			t.Errorf("a silent broker is asked again after %v, want %v", pause, pingInterval)
		}
		g.step(t.Context()) // the ping succeeds
		g.expect(t, halfOpen, true)
		g.fail() // it is not quite there yet
		if pause := g.untilStep(); pause != g.backoff.Initial {
			t.Errorf("a broker that has just come back is tried again after %v, want %v", pause, g.backoff.Initial)
		}
		for range 10 {
			g.step(t.Context())
			g.begin()
			g.fail()
		}
		if pause := g.untilStep(); pause != g.backoff.Max {
			t.Errorf("a broker that takes no messages is tried again after %v, want %v", pause, g.backoff.Max)
		}
	})
}

// When there is nothing left to try a sink with, since another relay has sent
// it, the sink counts as up when it answers, and still one batch tries it first.
func TestGateThatNothingTriesIsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateTest()
		g.up = true
		g.fail()
		g.step(t.Context())
		g.expect(t, halfOpen, true)
		if g.up {
			t.Error("the sink is up although nobody knows whether it takes messages")
		}
		time.Sleep(g.untilStep())
		g.step(t.Context())
		g.expect(t, halfOpen, true)
		if !g.up {
			t.Error("the sink is away although it answers and nothing was refused since")
		}
		g.begin()
		g.fail()
		g.expect(t, closed, false)
		if g.up {
			t.Error("the sink is up although it takes nothing")
		}
	})
}
