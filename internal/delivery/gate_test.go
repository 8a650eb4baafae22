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
}

func newGateTest() *gateTest {
	g := &gateTest{broker: &broker{}, journal: newJournal()}
	g.gate = newGate("main", g.broker, steady, slog.New(g.journal), func() { g.changes++ })
	return g
}

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
	g.failed(errConnection)
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

	g.failed(errConnection) // it answers, but takes nothing
	g.expect(t, closed, false)
	g.expectLines(t, 1, 0)
	if pause := g.untilStep(); pause != 2*steady.Initial {
		t.Errorf("the second pause is %s, want %s", pause, 2*steady.Initial)
	}
	g.step(t.Context())
	g.begin()
	g.succeeded(time.Now())
	g.expect(t, open, true)
	g.expectLines(t, 1, 1)
	if g.changes != 3 || g.failures != 0 {
		t.Errorf("%d changes were told, %d failures remembered; want 3 and 0", g.changes, g.failures)
	}
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
	for range 4 { // as many workers
		g.failed(errConnection)
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

		g.succeeded(time.Now()) // messages flow
		time.Sleep(1500 * time.Millisecond)
		g.succeeded(time.Now())
		time.Sleep(1500 * time.Millisecond) // 8 s
		at("while messages flow")

		g.broker.set(func(b *broker) { b.away = errConnection })
		g.failed(errConnection)
		time.Sleep(1500 * time.Millisecond)
		at("away", 8200*time.Millisecond, 8600*time.Millisecond, 9400*time.Millisecond)
		cancel()
		synctest.Wait()
	})
}
