package delivery

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

func TestPolicies(t *testing.T) {
	for _, test := range []struct {
		policy, onFailure Policy
		err               error
		tries             int
		dead, dropped     bool
	}{
		{Park, "", errRefused, 0, false, false},
		{Park, "", errTooLarge, 0, false, false},
		{DeadLetter, "", errRefused, 3, true, false},
		{DeadLetter, "", errTooLarge, 1, true, false},
		{Skip, "", errRefused, 3, false, true},
		{Skip, "", errTooLarge, 1, false, true},
		{Park, Skip, errTooLarge, 1, false, true},
		{Skip, DeadLetter, errTooLarge, 1, true, false},
		{Skip, Park, errTooLarge, 0, false, false},
	} {
		t.Run(fmt.Sprintf("%s,%s,%s", test.policy, test.onFailure, sinks.ReasonOf(test.err)), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := newTable(100)
				a1, bad, a3, b := table.insert("orders", "a"), table.insert("orders", "a"), table.insert("orders", "a"), table.insert("orders", "b")
				r := start(t, table, func(o *Options, r *relay) {
					o.Failures.Policy, o.Failures.MaxAttempts = test.policy, 3
					o.Routes = compile(t, route.Config{Sink: "main", OnFailure: test.onFailure})
					r.main.refuse = refuseIDs(test.err, bad)
				})
				time.Sleep(3 * time.Second)
				if !test.dead && !test.dropped {
					expect(t, "published", sorted(r.main.got()), of(a1, b))
					expect(t, "parked", table.held()[bad].Parked, true)
					expect(t, "pending", table.pending(), of(bad, a3))
					return
				}
				expect(t, "published", sorted(r.main.got()), of(a1, a3, b))
				expect(t, "tries", len(r.main.triesOf(bad)), test.tries)
				expect(t, "entries", len(table.held()), 0)
				if test.dead {
					expect(t, "dead letters", table.dead, of(bad))
					expect(t, "lines", len(r.journal.having("WARN a message was moved to the dead letters", fmt.Sprint("id=", bad), fmt.Sprint("attempts=", test.tries))), 1)
				} else {
					expect(t, "dropped", table.dropped, of(bad))
					expect(t, "lines", len(r.journal.having("WARN a message was skipped and deleted", fmt.Sprint("id=", bad))), 1)
				}
			})
		})
	}
}

// A broker that is away says nothing about a message, however often.
func TestOutagesAreNoAttempts(t *testing.T) {
	for name, err := range map[string]error{
		"sink": errConnection, "destination": errNoTopic, "partition": errNoReplicas, "nobody classified it": errors.New("strange"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := newTable(100)
				id := table.insert("orders", "a")
				r := start(t, table, func(o *Options, r *relay) {
					o.Failures.Policy, o.Failures.MaxAttempts = Skip, 2
					r.main.refuse = refuseIDs(err, id)
				})
				time.Sleep(time.Minute)
				expect(t, "entries", len(table.held()), 0)
				expect(t, "pending", table.pending(), of(id))
				// Nor are they between two attempts.
				r.main.set(func(b *broker) { b.refuse = refuseIDs(errRefused, id) })
				for len(table.held()) == 0 {
					time.Sleep(time.Millisecond)
				}
				r.main.set(func(b *broker) { b.refuse = refuseIDs(err, id) })
				time.Sleep(time.Minute)
				expect(t, "failures", table.held()[id], source.Failures{Attempts: 1})
				r.main.set(func(b *broker) { b.refuse = nil })
				time.Sleep(time.Minute)
				expect(t, "published", r.main.got(), of(id))
				expect(t, "entries", len(table.held()), 0)
				expect(t, "lines", len(r.journal.having("INFO a message that had been refused was published", "attempts=2")), 1)
			})
		})
	}
}

// A destination that takes nothing is tried by one batch at a time, and all of
// the topics that lead there wait for it.
func TestDestinationIsTriedByOneBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(1)
		for i := range 8 {
			table.insert(fmt.Sprint("missing", i%2), fmt.Sprint(i))
		}
		there := table.insert("there", "k")
		r := start(t, table, func(o *Options, r *relay) {
			o.Workers = 4
			o.Routes = compile(t, route.Config{Match: route.Match{Topic: "missing*", Type: "*"}, Sink: "main", Destination: "nowhere"},
				route.Config{Match: route.Match{Topic: "*", Type: "*"}, Sink: "main"})
			r.main.delay = 50 * time.Millisecond
			r.main.refuse = func(m sinks.Message) error {
				if m.Destination == "nowhere" {
					return errNoTopic
				}
				return nil
			}
		})
		time.Sleep(10 * time.Second)
		expect(t, "published", r.main.got(), of(there))
		// Some at first, then one after 0.2 s, 0.4 s, 0.8 s, 1.6 s, 3.2 s.
		tries := r.main.tries()
		if n := len(tries); n > 12 {
			t.Errorf("%d batches were tried in 10 s, want about 10", n)
		}
		for i := 7; i < len(tries); i++ {
			if pause := tries[i].at.Sub(tries[i-1].at); pause < steady.Initial {
				t.Errorf("batch %d was tried %s after the one before", i, pause)
			}
		}
		expect(t, "lines", len(r.journal.having("WARN a destination takes nothing", "destination=nowhere")), 1)
		expect(t, "lines about the sink", len(r.journal.having("sink is away")), 0)
		r.main.set(func(b *broker) { b.refuse = nil })
		time.Sleep(20 * time.Second)
		expect(t, "pending", table.pending(), of())
		expect(t, "lines", len(r.journal.having("INFO a destination takes messages again", "destination=nowhere")), 1)
	})
}

// A partition without enough replicas holds back its keys, not its sink.
func TestPartitionHoldsBackItsKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		var stuck []int64
		r := start(t, table, func(_ *Options, r *relay) {
			r.main.refuse = func(m sinks.Message) error {
				if m.Key != nil && m.Key[0] == 'p' {
					return errNoReplicas
				}
				return nil
			}
		})
		flowing := 0
		for i := range 50 {
			stuck = append(stuck, table.insert("orders", fmt.Sprint("p", i%5)))
			table.insert("orders", fmt.Sprint("q", i%5))
			flowing++
			time.Sleep(100 * time.Millisecond)
		}
		expect(t, "published", len(r.main.got()), flowing)
		expect(t, "pending", table.pending(), stuck)
		expect(t, "lines", len(r.journal.having("WARN a destination takes nothing", "concerns=partition", "reason=not_enough_replicas")), 1)
		expect(t, "lines about the sink", len(r.journal.having("sink is away")), 0)
		r.main.set(func(b *broker) { b.refuse = nil })
		time.Sleep(30 * time.Second)
		expect(t, "pending", table.pending(), of())
		expect(t, "lines", len(r.journal.having("INFO a destination takes messages again")), 1)
	})
}

// Retries wait while their sink is away, and do not keep others from their turn.
func TestHeldBackMessagesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(1)
		bad := map[int64]bool{}
		for i := range 20 {
			bad[table.insert("orders", fmt.Sprint("bad", i))] = true
		}
		r := start(t, table, func(o *Options, r *relay) {
			o.Workers = 2
			o.Failures.Backoff = Backoff{Initial: time.Millisecond, Max: time.Millisecond, Multiplier: 1}
			r.main.delay = 10 * time.Millisecond
			r.main.refuse = func(m sinks.Message) error {
				if bad[m.Sequence] {
					return errTooLarge
				}
				return nil
			}
		})
		time.Sleep(time.Second)
		began := time.Now()
		for i := range 100 {
			table.insert("orders", fmt.Sprint("good", i))
		}
		for len(r.main.got()) < 100 && time.Since(began) < time.Minute {
			time.Sleep(time.Millisecond)
		}
		// One worker of the two is theirs at least.
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("100 batches of 10 ms took %s beside messages that are always due", took)
		}
		retries := 0
		for id := range bad {
			retries += len(r.main.triesOf(id))
		}
		if retries < 40 {
			t.Errorf("%d retries while others flow", retries)
		}
		r.main.set(func(b *broker) { b.away = errConnection })
		time.Sleep(time.Second)
		before := len(r.main.tries())
		time.Sleep(2 * time.Second)
		if n := len(r.main.tries()) - before; n > 0 {
			t.Errorf("%d batches were tried while the sink was away", n)
		}
	})
}

// A message that the source cannot decode is refused like any other.
func TestMessageThatTheSourceRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		bad, behind, other := table.insert("orders", "a"), table.insert("orders", "a"), table.insert("orders", "b")
		table.rows[0].refused = &sinks.Error{Scope: sinks.ScopeMessage, Permanent: true, Reason: "headers", Err: errors.New("no object")}
		r := start(t, table, func(o *Options, _ *relay) { o.Failures.Policy = DeadLetter })
		time.Sleep(time.Second)
		expect(t, "published", sorted(r.main.got()), of(behind, other))
		expect(t, "dead letters", table.dead, of(bad))
	})
}

// What cannot be written down is held back in memory meanwhile.
func TestRefusalThatCannotBeRecordedWaitsInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		bad, behind, other := table.insert("orders", "a"), table.insert("orders", "a"), table.insert("orders", "b")
		table.unrecorded = &source.UnrecordedError{Err: errors.New("permission denied for table outbox_parked")}
		r := start(t, table, func(_ *Options, r *relay) { r.main.refuse = refuseIDs(errRefused, bad) })
		time.Sleep(5 * time.Second)
		expect(t, "published", r.main.got(), of(other))
		expect(t, "pending", table.pending(), of(bad, behind))
		if n := len(r.main.triesOf(bad)); n < 3 || n > 8 {
			t.Errorf("it was tried %d times in 5 s", n)
		}
		if len(r.journal.having("ERROR refused messages could not be recorded", "permission denied for table outbox_parked")) == 0 {
			t.Errorf("the log does not say why: %q", r.journal.having(""))
		}
	})
}

// A message that the database does not let go is told as parked, once, with the reason, and no other waits in memory.
func TestMessageThatCannotGoIsToldAsParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		bad, behind, other := table.insert("orders", "a"), table.insert("orders", "a"), table.insert("orders", "b")
		table.unrecorded = &source.UnrecordedError{
			Err: errors.New("a row"), Rows: map[int64]error{}, Kept: map[int64]error{bad: errors.New("violates foreign key constraint invoices_event_fk")},
		}
		r := start(t, table, func(o *Options, r *relay) {
			o.Failures.Policy = DeadLetter
			r.main.refuse = refuseIDs(errTooLarge, bad, other)
		})
		time.Sleep(5 * time.Second)
		expect(t, "pending", table.pending(), of(bad, behind))
		expect(t, "parked", table.held()[bad].Parked, true)
		expect(t, "dead letters", table.dead, of(other))
		expect(t, "lines", len(r.journal.having("WARN a message is parked", fmt.Sprint("id=", bad), "invoices_event_fk")), 1)
		expect(t, "lines of moves", len(r.journal.having("moved to the dead letters")), 1)
		expect(t, "lines of others", len(r.journal.having("could not be recorded")), 0)
	})
}

// Claims of held back messages fail, and the others do not: a privilege on their
// table is missing, say.
func TestHeldBackMessagesThatCannotBeClaimedHinderNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(100)
		bad := table.insert("orders", "a")
		r := start(t, table, func(_ *Options, r *relay) { r.main.refuse = refuseIDs(errRefused, bad) })
		time.Sleep(time.Second)
		expect(t, "entries", len(table.held()), 1)
		table.setHeldFault(errors.New("broken"))
		time.Sleep(10 * time.Minute)
		for range 3 {
			table.insert("orders", "b")
			time.Sleep(time.Second)
			expect(t, "pending", table.pending(), of(bad))
		}
		expect(t, "lines", len(r.journal.having("held back messages cannot be read")), 1)
		expect(t, "lines", len(r.journal.having("the outbox cannot be read")), 0)
		table.setHeldFault(nil)
		r.main.set(func(b *broker) { b.refuse = nil })
		time.Sleep(time.Minute)
		expect(t, "pending", table.pending(), of())
		expect(t, "lines", len(r.journal.having("held back messages can be read again")), 1)
	})
}
