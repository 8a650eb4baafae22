package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/sinks"
)

// relay is a Relay on a table in memory and on scripted brokers, in a bubble of
// synctest: its time passes only while everybody waits, and the test fails
// when a goroutine outlives it.
type relay struct {
	*Relay
	table   *table
	journal *journal
	// main takes all topics but mail.*, which mail takes, where there is one.
	main, mail *broker
	stop       context.CancelFunc
	stopped    chan struct{}
}

// start runs a relay until the test ends.
func start(t *testing.T, table *table, change func(o *Options, r *relay)) *relay {
	t.Helper()
	r := &relay{table: table, journal: newJournal(), main: &broker{}, stopped: make(chan struct{})}
	options := Options{
		Source: table.source, Sinks: map[string]sinks.Publisher{"main": r.main},
		Workers: 2, PollInterval: 100 * time.Millisecond, PublishTimeout: 30 * time.Second,
		Failures: Failures{Policy: Park, MaxAttempts: 5, Backoff: steady}, ShutdownTimeout: 10 * time.Second, Logger: slog.New(r.journal),
	}
	options.Routes = compile(t, route.Config{Sink: "main"})
	if change != nil {
		change(&options, r)
	}
	r.Relay = New(options)
	ctx, cancel := context.WithCancel(t.Context())
	r.stop = cancel
	go func() {
		defer close(r.stopped)
		r.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.stopped
		if n := table.openClaims(); n != 0 {
			t.Errorf("%d claims were neither settled nor released", n)
		}
	})
	return r
}

// withMail adds the sink mail.
func withMail(t *testing.T) func(*Options, *relay) {
	return func(o *Options, r *relay) {
		r.mail = &broker{}
		o.Sinks["mail"] = r.mail
		o.Routes = compile(t,
			route.Config{Match: route.Match{Topic: "mail.*"}, Sink: "mail"},
			route.Config{Match: route.Match{Topic: "*"}, Sink: "main"})
	}
}

func compile(t *testing.T, routes ...route.Config) *route.Table {
	t.Helper()
	names := map[string]route.Broker{}
	for _, r := range routes {
		names[r.Sink] = route.Kafka
	}
	compiled, err := route.Compile(routes, names)
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// of names ids, so that a test reads well.
func of(ids ...int64) []int64 { return ids }

// sorted is what ids are whatever order they came in.
func sorted(ids []int64) []int64 { return slices.Sorted(slices.Values(ids)) }

func TestLoopPublishesAndSettlesEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(10)
		keys := map[int64]string{}
		for i := range 95 {
			key := fmt.Sprintf("k%d", i%7)
			keys[table.insert("orders", key)] = key
		}
		r := start(t, table, func(_ *Options, r *relay) { r.main.delay = 20 * time.Millisecond })
		time.Sleep(5 * time.Second)
		if !r.Ready() {
			t.Error("it is not ready")
		}
		expect(t, "pending", table.pending(), of())
		last := map[string]int64{}
		for _, id := range r.main.got() {
			if id <= last[keys[id]] {
				t.Errorf("%d came after %d of its key", id, last[keys[id]])
			}
			last[keys[id]] = id
		}
		expect(t, "published", len(r.main.got()), 95)
		expect(t, "time for a publish", r.main.deadline, 30*time.Second)
		if lines := r.journal.having(""); len(lines) > 0 {
			t.Errorf("it has something to say: %q", lines)
		}
	})
}

func TestRefusedMessageHoldsBackItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		a1, a2, a3 := table.insert("orders", "a"), table.insert("orders", "a"), table.insert("orders", "a")
		b1, n1 := table.insert("orders", "b"), table.insert("orders", "")
		other := table.insert("other", "a")
		began := time.Now()
		r := start(t, table, func(_ *Options, r *relay) { r.main.refuse = refuseIDs(errTooLarge, a2) })
		time.Sleep(8 * time.Second)
		expect(t, "published", sorted(r.main.got()), of(a1, b1, n1, other))
		expect(t, "pending", table.pending(), of(a2, a3))

		// It is tried again after ever longer pauses.
		var tries []time.Duration
		for _, at := range r.main.triesOf(a2) {
			tries = append(tries, at.Sub(began).Round(10*time.Millisecond))
		}
		// 200 ms, 400 ms, 800 ms …, and a claim's pause on top of some.
		expect(t, "tries", tries, []time.Duration{0, 200 * time.Millisecond, 600 * time.Millisecond, 1400 * time.Millisecond, 3 * time.Second, 6200 * time.Millisecond})

		// It is logged, but not each time.
		about := []string{"topic=orders", fmt.Sprintf("id=%d", a2), "too large", "reason=message_too_large"}
		expect(t, "lines", len(r.journal.having(append(about, "WARN a message is parked", "attempts=1 ")...)), 1)
		expect(t, "lines in all", len(r.journal.having(about...)), 3) // the 1st, 2nd and 4th time

		// New rows of its key wait behind it, others do not.
		a4, b2 := table.insert("orders", "a"), table.insert("orders", "b")
		time.Sleep(200 * time.Millisecond)
		expect(t, "pending", table.pending(), of(a2, a3, a4))
		expect(t, "last published", slices.Max(r.main.got()), b2)

		// Once it is cancelled, its key goes on in order.
		table.remove(a2)
		time.Sleep(10 * time.Second)
		expect(t, "pending", table.pending(), of())
		got := r.main.got()
		expect(t, "at last", got[len(got)-2:], of(a3, a4))
	})
}

func TestRefusedMessageWithoutKeyHoldsBackItselfOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		bad, good := table.insert("orders", ""), table.insert("orders", "")
		r := start(t, table, func(_ *Options, r *relay) { r.main.refuse = refuseIDs(errTooLarge, bad) })
		time.Sleep(time.Second)
		expect(t, "published", r.main.got(), of(good))
		r.main.set(func(b *broker) { b.refuse = nil }) // somebody raised the limit
		time.Sleep(2 * time.Second)
		expect(t, "published", r.main.got(), of(good, bad))
	})
}

func TestMissingDestinationHoldsBackItsTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		var missing []int64
		for i := range 20 {
			missing = append(missing, table.insert("missing", fmt.Sprint("k", i%3)))
		}
		there := table.insert("there", "k")
		r := start(t, table, func(_ *Options, r *relay) { r.main.refuse = refuseTopic(errNoTopic, "missing") })
		time.Sleep(3 * time.Second)
		expect(t, "published", r.main.got(), of(there))
		if n := len(r.main.tries()); n > 6 {
			t.Errorf("%d calls of the broker in 3 s; the topic should wait as a whole", n)
		}
		if lines := r.journal.having("WARN a destination takes nothing"); len(lines) != 1 {
			t.Errorf("not one line is said: %q", lines)
		}
		expect(t, "lines that say that the sink is away", len(r.journal.having("sink is away")), 0)
		r.main.set(func(b *broker) { b.refuse = nil }) // it was created
		time.Sleep(5 * time.Second)
		expect(t, "published", r.main.got(), append(of(there), missing...))
	})
}

func TestRowWithoutRouteHoldsBackItsTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		lost, there := table.insert("lost", "k"), table.insert("there", "k")
		r := start(t, table, func(o *Options, _ *relay) {
			o.Routes = compile(t, route.Config{Match: route.Match{Topic: "there"}, Sink: "main"})
		})
		time.Sleep(time.Second)
		expect(t, "published", r.main.got(), of(there))
		expect(t, "pending", table.pending(), of(lost))
		if len(r.journal.having("WARN a destination takes nothing", `no route matches topic "lost"`)) == 0 {
			t.Errorf("the log does not say why: %q", r.journal.having(""))
		}
	})
}

func TestImpossibleDestinationHoldsBackItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		table.insert("orders", "good")
		bad := table.insert("orders", "not a Kafka topic!")
		behind := table.insert("orders", "not a Kafka topic!")
		good := table.insert("orders", "good")
		r := start(t, table, func(o *Options, _ *relay) {
			o.Routes = compile(t, route.Config{Sink: "main", Destination: "{key}"})
		})
		time.Sleep(time.Second)
		expect(t, "published", r.main.got(), of(1, good))
		expect(t, "pending", table.pending(), of(bad, behind))
	})
}

func TestOtherSinkFlowsWhileOneIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		r := start(t, table, withMail(t))
		r.main.set(func(b *broker) { b.away = errConnection })
		var orders, mails []int64
		for i := range 30 {
			orders = append(orders, table.insert("orders", fmt.Sprint("k", i%3)))
			mails = append(mails, table.insert("mail.welcome", fmt.Sprint("k", i%3)))
			time.Sleep(300 * time.Millisecond)
		}
		time.Sleep(time.Second)
		expect(t, "mails", r.mail.got(), mails)
		expect(t, "pending", table.pending(), orders)
		if n := len(r.main.tries()); n > 2 {
			t.Errorf("%d batches went to the sink that was away", n)
		}
		expect(t, "lines", len(r.journal.having("WARN sink is away", "sink=main", "connection refused")), 1)

		r.main.set(func(b *broker) { b.away = nil })
		time.Sleep(20 * time.Second)
		expect(t, "orders", r.main.got(), orders)
		expect(t, "pending", table.pending(), of())
		expect(t, "lines", len(r.journal.having("INFO sink is back", "sink=main")), 1)
		expect(t, "lines in all", len(r.journal.having("")), 2)
	})
}

func TestNothingIsClaimedWhileTheOnlySinkIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		r := start(t, table, nil)
		r.main.set(func(b *broker) { b.away = errConnection })
		id := table.insert("orders", "k")
		time.Sleep(time.Second)
		expect(t, "open claims", table.openClaims(), 0)
		since, pings := time.Now(), table.pingCount()
		for range 10 {
			r.Wake() // a notification does not help
			time.Sleep(time.Second)
		}
		expect(t, "claims", table.claimsSince(since), 0)
		if n := table.pingCount() - pings; n < 5 || n > 11 {
			t.Errorf("the database was asked %d times in 10 s, want about once a second", n)
		}
		r.main.set(func(b *broker) { b.away = nil })
		time.Sleep(20 * time.Second)
		expect(t, "published", r.main.got(), of(id))
	})
}

func TestBrokerThatAnswersAndTakesNothingIsTriedByOneBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(1)
		for i := range 8 {
			table.insert("orders", fmt.Sprint("k", i))
		}
		r := start(t, table, func(o *Options, r *relay) {
			o.Workers = 4
			r.main.deaf, r.main.delay = errNoLeader, 50*time.Millisecond
		})
		time.Sleep(10 * time.Second)
		// Four at first, then one after 0.2 s, 0.4 s, 0.8 s, 1.6 s, 3.2 s.
		if n := len(r.main.tries()); n < 6 || n > 10 {
			t.Errorf("%d batches were tried in 10 s, want about 9", n)
		}
		for i, a := range r.main.tries()[4:] {
			if previous := r.main.tries()[i+3].at; a.at.Sub(previous) < steady.Initial {
				t.Errorf("batch %d was tried %s after the one before", i+4, a.at.Sub(previous))
			}
		}
		expect(t, "lines", len(r.journal.having("")), 1)
		r.main.set(func(b *broker) { b.deaf = nil })
		time.Sleep(20 * time.Second)
		expect(t, "pending", table.pending(), of())
	})
}

func TestFailuresInABatchForTwoSinksHitTheRightRows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		var badOrder, badMail int64
		for i := range 12 {
			order, mail := table.insert("orders", fmt.Sprint(i)), table.insert("mail.welcome", fmt.Sprint(i))
			if i == 5 {
				badOrder, badMail = order, mail+4
			}
		}
		r := start(t, table, func(o *Options, r *relay) {
			withMail(t)(o, r)
			r.main.refuse, r.mail.refuse = refuseIDs(errTooLarge, badOrder), refuseIDs(errTooLarge, badMail)
		})
		time.Sleep(time.Second)
		expect(t, "pending", table.pending(), of(badOrder, badMail))
		expect(t, "published", len(r.main.got())+len(r.mail.got()), 22)
	})
}

func TestTotalOrderStopsAtTheRefusedMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(3)
		table.total = true
		for i := range 9 {
			table.insert("orders", fmt.Sprint("k", i))
		}
		r := start(t, table, func(o *Options, r *relay) {
			o.TotalOrder, o.Workers = true, 1
			// As the sinks have it in a total order: nothing passes what failed.
			r.main.refuse = func(m sinks.Message) error {
				switch {
				case m.Sequence == 4:
					return errTooLarge
				case m.Sequence > 4:
					return sinks.ErrSkipped
				}
				return nil
			}
		})
		time.Sleep(5 * time.Second)
		expect(t, "published", r.main.got(), of(1, 2, 3))
		expect(t, "pending", len(table.pending()), 6)
		r.main.set(func(b *broker) { b.refuse = nil })
		time.Sleep(10 * time.Second)
		expect(t, "published", r.main.got(), of(1, 2, 3, 4, 5, 6, 7, 8, 9))
	})
}

func TestDatabaseOutageIsLoggedOncePerChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		refused := &pgconn.PgError{Code: "57P03", Message: "the database system is starting up"}
		table.setFault(refused)
		r := start(t, table, nil)
		time.Sleep(60 * time.Second)
		if r.Ready() {
			t.Error("it is ready without a database")
		}
		expect(t, "lines", len(r.journal.having("ERROR the outbox cannot be read", "problem=restarting")), 1)
		// 0.2 s, 0.4 s … up to 5 s between attempts.
		if n := table.claimsSince(time.Time{}); n < 12 || n > 20 {
			t.Errorf("%d claims in a minute", n)
		}
		r.Wake()
		table.setFault(&pgconn.PgError{Code: "42501", Message: "permission denied for table outbox"})
		time.Sleep(60 * time.Second)
		expect(t, "lines", len(r.journal.having("ERROR the outbox cannot be read", "problem=missing_grant", "remedy=GRANT SELECT, UPDATE")), 1)
		id := table.insert("orders", "k")
		table.setFault(nil)
		time.Sleep(6 * time.Second)
		expect(t, "published", r.main.got(), of(id))
		expect(t, "lines", len(r.journal.having("INFO the outbox can be read again")), 1)
		expect(t, "lines in all", len(r.journal.having("")), 3)
		if !r.Ready() {
			t.Error("it is not ready")
		}
	})
}

func TestDatabaseOutageShowsWhileNoSinkTakesMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		table.setFault(&pgconn.PgError{Code: "42P01", Message: `relation "outbox" does not exist`})
		r := start(t, table, func(_ *Options, r *relay) { r.main.away = errConnection })
		time.Sleep(10 * time.Second)
		expect(t, "lines about the database", len(r.journal.having("problem=missing_table", "relay migrate")), 1)
		expect(t, "lines about the sink", len(r.journal.having("sink is away")), 1)
		table.setFault(nil)
		time.Sleep(10 * time.Second)
		if !r.Ready() {
			t.Error("a broker that is away keeps it from being ready")
		}
	})
}

// What was published and could not be marked is not sent again, and nothing else is published
// that could not be marked either.
func TestFailedSettlingWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		a1, a2 := table.insert("orders", "a"), table.insert("orders", "a")
		table.settles = errors.New("permission denied")
		r := start(t, table, nil)
		time.Sleep(10 * time.Second)
		more := table.insert("orders", "b")
		time.Sleep(50 * time.Second)
		expect(t, "published while nothing can be marked", r.main.got(), of(a1, a2))
		table.mutex.Lock()
		table.settles = nil
		if n := len(table.resettles); n < 5 || n > 12 {
			t.Errorf("marking was tried again %d times in a minute", n)
		}
		table.mutex.Unlock()
		time.Sleep(time.Minute)
		expect(t, "pending", table.pending(), of())
		expect(t, "published in all", r.main.got(), of(a1, a2, more))
		expect(t, "warnings", len(r.journal.having("WARN published messages could not be marked", "permission denied")), 1)
		expect(t, "ends of it", len(r.journal.having("INFO published messages could be marked after all")), 1)
	})
}

func TestWakeEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		r := start(t, table, func(o *Options, _ *relay) { o.PollInterval = time.Hour })
		time.Sleep(3 * time.Hour) // it is idle
		id, began := table.insert("orders", "k"), time.Now()
		r.Wake()
		for len(r.main.got()) == 0 && time.Since(began) < time.Second {
			time.Sleep(100 * time.Microsecond)
		}
		expect(t, "published", r.main.got(), of(id))
		if took := time.Since(began); took > 2*time.Millisecond {
			t.Errorf("it took %s from the notification", took)
		}
		// A storm of notifications does not make a storm of claims.
		time.Sleep(3 * time.Hour)
		since := time.Now()
		for range 1000 {
			r.Wake()
			time.Sleep(10 * time.Microsecond)
		}
		if n := table.claimsSince(since); n > 12 {
			t.Errorf("%d claims in 10 ms", n)
		}
	})
}

func TestKeyGoesOnWhenItsSlowBatchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		r := start(t, table, func(o *Options, r *relay) {
			o.PollInterval, r.main.delay = time.Minute, 20*time.Second
		})
		first := table.insert("orders", "k")
		r.Wake()
		time.Sleep(10 * time.Second)
		second := table.insert("orders", "k")
		time.Sleep(40 * time.Second)
		tries := slices.Concat(r.main.triesOf(first), r.main.triesOf(second))
		if len(tries) != 2 {
			t.Fatalf("tried at %v, want each message once", tries)
		}
		if waited := tries[1].Sub(tries[0].Add(20 * time.Second)); waited < 0 || waited > busyMax {
			t.Errorf("the second message waited %s after the end of the first, want 0 to %s", waited, busyMax)
		}
	})
}

func TestIdleLoopClaimsOncePerPollInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		start(t, table, nil)
		time.Sleep(5 * time.Second)
		since := time.Now()
		time.Sleep(10 * time.Second)
		if n := table.claimsSince(since); n < 99 || n > 101 {
			t.Errorf("%d claims in 10 s at a poll interval of 100 ms", n)
		}
	})
}

func TestStopLetsWhatIsUnderWayFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(2)
		for i := range 10 {
			table.insert("orders", fmt.Sprint("k", i))
		}
		r := start(t, table, func(_ *Options, r *relay) { r.main.delay = 4 * time.Second })
		time.Sleep(time.Second)
		began := time.Now()
		r.stop()
		<-r.stopped
		expect(t, "time to stop", time.Since(began), 3*time.Second)
		expect(t, "published", len(r.main.got()), 4) // what its two workers had
		expect(t, "pending", len(table.pending()), 6)
		expect(t, "claims", table.claimsSince(began), 0)
		if r.Ready() {
			t.Error("it is ready although it stopped")
		}
		if lines := r.journal.having(""); len(lines) > 0 {
			t.Errorf("it has something to say: %q", lines)
		}
	})
}

func TestStopIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(1)
		id := table.insert("orders", "k")
		r := start(t, table, func(o *Options, r *relay) {
			r.main.delay, o.PublishTimeout = time.Hour, time.Minute
		})
		time.Sleep(time.Second)
		began := time.Now()
		r.stop()
		<-r.stopped
		expect(t, "time to stop", time.Since(began), 10*time.Second)
		expect(t, "pending", table.pending(), of(id))
		expect(t, "open claims", table.openClaims(), 0)
		if lines := r.journal.having("sink is away"); len(lines) > 0 {
			t.Errorf("it blames the sink: %q", lines)
		}
	})
}

func TestStopDuringAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(1)
		table.setFault(errors.New("unreachable"))
		r := start(t, table, func(_ *Options, r *relay) { r.main.away = errConnection })
		time.Sleep(time.Minute)
		began := time.Now()
		r.stop()
		<-r.stopped
		expect(t, "time to stop", time.Since(began), 0*time.Second)
	})
}

func TestPublishThatHangsEndsWithItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(1)
		id := table.insert("orders", "k")
		r := start(t, table, func(o *Options, r *relay) {
			r.main.delay, o.PublishTimeout = time.Hour, 31*time.Second // between two pings
		})
		time.Sleep(31*time.Second + 100*time.Millisecond)
		expect(t, "open claims", table.openClaims(), 0)
		expect(t, "lines", len(r.journal.having("WARN sink is away", "deadline exceeded")), 1)
		r.main.set(func(b *broker) { b.delay = 0 })
		time.Sleep(time.Minute)
		expect(t, "published", r.main.got(), of(id))
	})
}
