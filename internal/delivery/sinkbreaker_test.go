package delivery

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// breakerTest is a breaker whose monitor does not run, and who it calls.
type breakerTest struct {
	*sinkBreaker
	broker  *broker
	journal *journal
	changes int
	up      bool
}

func newBreakerTest() *breakerTest {
	b := &breakerTest{broker: &broker{}, journal: newJournal()}
	b.sinkBreaker = newSinkBreaker("main", b.broker, steady, slog.New(b.journal), func() { b.changes++ }, func(up bool) { b.up = up })
	return b
}

// fail and succeed are of a batch that was claimed just now.
func (b *breakerTest) fail()    { b.failed(errConnection, time.Now(), b.openings) }
func (b *breakerTest) succeed() { b.succeeded(time.Now(), b.openings) }

func (b *breakerTest) expect(t *testing.T, state breakerState, passes bool) {
	t.Helper()
	if b.state != state || b.passes() != passes {
		t.Errorf("state %d, passes %t; want %d, %t", b.state, b.passes(), state, passes)
	}
}

func (b *breakerTest) expectLines(t *testing.T, away, back int) {
	t.Helper()
	if n := len(b.journal.having("WARN sink is away", "sink=main")); n != away {
		t.Errorf("%d lines say that the sink is away, want %d: %q", n, away, b.journal.shared.all)
	}
	if n := len(b.journal.having("INFO sink is back", "sink=main")); n != back {
		t.Errorf("%d lines say that the sink is back, want %d: %q", n, back, b.journal.shared.all)
	}
}

func TestBreakerClosesHalfwayAfterPublishFailed(t *testing.T) {
	b := newBreakerTest()
	b.expect(t, breakerClosed, true)
	b.fail()
	b.expect(t, breakerOpen, false)
	b.expectLines(t, 1, 0)

	b.step(t.Context()) // the ping succeeds
	b.expect(t, breakerHalfOpen, true)
	if b.changes != 1 {
		t.Errorf("%d changes were told, want 1", b.changes)
	}
	b.begin() // one batch tries it
	b.expect(t, breakerHalfOpen, false)
	b.step(t.Context()) // and no ping says anything meanwhile
	b.expect(t, breakerHalfOpen, false)

	b.fail() // it answers, but takes nothing
	b.expect(t, breakerOpen, false)
	b.expectLines(t, 1, 0)
	if pause := b.untilStep(); pause != 2*steady.Initial {
		t.Errorf("the second pause is %s, want %s", pause, 2*steady.Initial)
	}
	b.step(t.Context())
	b.begin()
	b.succeed()
	b.expect(t, breakerClosed, true)
	b.expectLines(t, 1, 1)
	if b.changes != 3 || !b.up {
		t.Errorf("%d changes were told, up %t; want 3, true", b.changes, b.up)
	}
}

// A ping that fails after a publish did must not make the next one that succeeds
// close the breaker for everybody.
func TestBreakerClosesHalfwayAfterPublishAndThenPingsFailed(t *testing.T) {
	b := newBreakerTest()
	b.fail()
	b.broker.away = errConnection
	b.step(t.Context())
	b.expect(t, breakerOpen, false)
	b.broker.away = nil
	b.step(t.Context())
	b.expect(t, breakerHalfOpen, true)
}

// Batches that began before the broker went away say nothing about it since.
func TestBreakerIgnoresBatchesThatBeganBeforeItOpened(t *testing.T) {
	b := newBreakerTest()
	first, second := b.begin(), b.begin()
	b.failed(errConnection, time.Now(), first)
	b.succeeded(time.Now(), second)
	b.expect(t, breakerOpen, false)
	b.step(t.Context())
	probe := b.begin()
	b.failed(errConnection, time.Now(), second)
	b.expect(t, breakerHalfOpen, false)
	if pause := b.backoff.pause(b.failures); pause != steady.Initial {
		t.Errorf("the pause is %s, want %s", pause, steady.Initial)
	}
	b.succeeded(time.Now(), probe)
	b.expect(t, breakerClosed, true)
}

// Part of a sink is there: batches get through and fail in turns.
func TestBreakerPausesLongerWhileSomeBatchesGetThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreakerTest()
		for i := range 4 {
			b.fail()
			if pause, want := b.untilStep(), steady.pause(i+1); pause != want {
				t.Errorf("failure %d: the pause is %s, want %s", i+1, pause, want)
			}
			b.step(t.Context())
			b.begin()
			b.succeed()
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(2 * time.Second) // longer than the last pause
		b.fail()
		if pause := b.untilStep(); pause != steady.Initial {
			t.Errorf("after it was closed for long the pause is %s, want %s", pause, steady.Initial)
		}
	})
}

func TestBreakerClosesAtOnceAfterPingsFailed(t *testing.T) {
	b := newBreakerTest()
	b.broker.away = errConnection
	for range 3 {
		b.step(t.Context())
		b.expect(t, breakerOpen, false)
	}
	if pause := b.untilStep(); pause != 4*steady.Initial {
		t.Errorf("the third pause is %s, want %s", pause, 4*steady.Initial)
	}
	b.expectLines(t, 1, 0)
	b.broker.away = errNoLeader
	b.step(t.Context())
	b.expectLines(t, 2, 0) // another reason is news
	b.broker.away = nil
	b.step(t.Context())
	b.expect(t, breakerClosed, true)
	b.expectLines(t, 2, 1)
	if b.changes != 1 {
		t.Errorf("%d changes were told, want 1", b.changes)
	}
}

func TestBreakerCountsBatchesThatFailTogetherOnce(t *testing.T) {
	b := newBreakerTest()
	together := b.begin()
	for range 4 { // as many workers
		b.failed(errConnection, time.Now(), together)
	}
	if pause := b.untilStep(); pause != steady.Initial {
		t.Errorf("the first pause is %s, want %s", pause, steady.Initial)
	}
	b.expectLines(t, 1, 0)
}

func TestBreakerDoesNotBlameTheSinkForAStop(t *testing.T) {
	b := newBreakerTest()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.broker.away = context.Canceled
	b.step(ctx)
	b.expect(t, breakerClosed, true)
	b.expectLines(t, 0, 0)
}

func TestBreakerMonitorPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreakerTest()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		began := time.Now()
		go b.monitor(ctx)
		// at checks how long after the beginning each ping was.
		at := func(what string, want ...time.Duration) {
			t.Helper()
			synctest.Wait()
			b.broker.mutex.Lock()
			defer b.broker.mutex.Unlock()
			var got []time.Duration
			for _, ping := range b.broker.pings {
				got = append(got, ping.Sub(began))
			}
			b.broker.pings = nil
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

		b.succeed() // messages flow
		time.Sleep(1500 * time.Millisecond)
		b.succeed()
		time.Sleep(1500 * time.Millisecond) // 8 s
		at("while messages flow")

		b.broker.set(func(b *broker) { b.away = errConnection })
		b.fail()
		time.Sleep(1500 * time.Millisecond)
		at("away", 8200*time.Millisecond, 8600*time.Millisecond, 9400*time.Millisecond)
		cancel()
		synctest.Wait()
	})
}

// A broker that was away for long is found to be back at once; one that answers
// and refuses messages is asked ever less often.
func TestBreakerFindsOutSoonThatASilentBrokerIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreakerTest()
		b.backoff = Backoff{Initial: 200 * time.Millisecond, Max: 30 * time.Second, Multiplier: 2}
		b.fail()
		for range 10 {
			b.pinged(errConnection, time.Now())
			time.Sleep(b.untilStep())
		}
		if pause := b.untilStep(); pause != pingInterval {
			t.Errorf("a silent broker is asked again after %v, want %v", pause, pingInterval)
		}
		b.step(t.Context()) // the ping succeeds
		b.expect(t, breakerHalfOpen, true)
		b.fail() // it is not quite there yet
		if pause := b.untilStep(); pause != b.backoff.Initial {
			t.Errorf("a broker that has just come back is tried again after %v, want %v", pause, b.backoff.Initial)
		}
		for range 10 {
			b.step(t.Context())
			b.begin()
			b.fail()
		}
		if pause := b.untilStep(); pause != b.backoff.Max {
			t.Errorf("a broker that takes no messages is tried again after %v, want %v", pause, b.backoff.Max)
		}
	})
}

// When there is nothing left to try a sink with, since another relay has sent
// it, the sink counts as up when it answers, and still one batch tries it first.
func TestBreakerThatNothingTriesIsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreakerTest()
		b.up = true
		b.fail()
		b.step(t.Context())
		b.expect(t, breakerHalfOpen, true)
		if b.up {
			t.Error("the sink is up although nobody knows whether it takes messages")
		}
		time.Sleep(b.untilStep())
		b.step(t.Context())
		b.expect(t, breakerHalfOpen, true)
		if !b.up {
			t.Error("the sink is away although it answers and nothing was refused since")
		}
		b.begin()
		b.fail()
		b.expect(t, breakerOpen, false)
		if b.up {
			t.Error("the sink is up although it takes nothing")
		}
	})
}
