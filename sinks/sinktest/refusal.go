package sinktest

import (
	"strings"
	"testing"

	"github.com/outboxrelay/relay/sinks"
)

func testRefused(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destination, other := broker.NewDestination(t), broker.NewDestination(t)
	var w writer
	messages := []sinks.Message{
		0:  w.message(destination, []byte("a"), []byte("1")),
		1:  w.message(destination, []byte("b"), []byte("1")),
		2:  w.message(destination, []byte("a"), []byte("2")),
		3:  w.message(destination, []byte("a"), []byte("3, refused")),
		4:  w.message(other, []byte("a"), []byte("1")),
		5:  w.message(destination, []byte("a"), []byte("4")),
		6:  w.message(destination, nil, []byte("without key")),
		7:  w.message(destination, []byte("b"), []byte("2")),
		8:  w.message(other, []byte("a"), []byte("2")),
		9:  w.message(destination, []byte("a"), []byte("5")),
		10: w.message(destination, []byte{}, []byte("empty key")),
		11: w.message(destination, []byte("c"), []byte("1, refused")),
		12: w.message(destination, []byte("b"), []byte("3")),
	}
	broker.Refuse(&messages[3])
	broker.Refuse(&messages[11])
	results := publish(t.Context(), t, publisher, messages)
	wantScope(t, results, sinks.ScopeMessage, 3, 11)
	for _, i := range []int{3, 11} {
		if err := result(results, i); err != nil && !sinks.IsPermanent(err) {
			t.Errorf("message %d can never succeed, but its error is not permanent: %v", i, err)
		}
	}
	wantScope(t, results, sinks.ScopeSkipped, 5, 9)
	wantAcknowledged(t, results, 0, 1, 2, 4, 6, 7, 8, 10, 12)

	// What was held back goes out once its caller left the refused one out.
	rest := []sinks.Message{messages[5], messages[9]}
	mustPublish(t, publisher, rest)

	sent := acknowledged(messages, results)
	var here, there []sinks.Message
	for _, m := range append(sent, rest...) {
		if m.Destination == other.Name && m.Exchange == other.Exchange {
			there = append(there, m)
		} else {
			here = append(here, m)
		}
	}
	received := broker.Read(t, destination, len(here), patience)
	wantExactly(t, broker, here, received)
	wantOrder(t, received)
	received = broker.Read(t, other, len(there), patience)
	wantExactly(t, broker, there, received)
	wantOrder(t, received)
}

func testRefusedWithoutKey(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destination := broker.NewDestination(t)
	var w writer
	messages := []sinks.Message{
		w.message(destination, nil, []byte("1")),
		w.message(destination, nil, []byte("2, refused")),
		w.message(destination, nil, []byte("3")),
	}
	broker.Refuse(&messages[1])
	results := publish(t.Context(), t, publisher, messages)
	wantScope(t, results, sinks.ScopeMessage, 1)
	wantAcknowledged(t, results, 0, 2)
	sent := acknowledged(messages, results)
	wantExactly(t, broker, sent, broker.Read(t, destination, len(sent), patience))
}

func testMissingDestination(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destination, missing := broker.NewDestination(t), broker.MissingDestination(t)
	var w writer
	messages := []sinks.Message{
		0: w.message(destination, []byte("a"), []byte("1")),
		1: w.message(missing, []byte("a"), []byte("1")),
		2: w.message(missing, []byte("b"), []byte("1")),
		3: w.message(destination, []byte("a"), []byte("2")),
		4: w.message(missing, nil, []byte("without key")),
		5: w.message(destination, []byte("b"), []byte("1")),
	}
	for range 2 { // the second time nothing is left of the first
		results := publish(t.Context(), t, publisher, messages)
		wantScope(t, results, sinks.ScopeDestination, 1, 2, 4)
		wantAcknowledged(t, results, 0, 3, 5)
		if err := result(results, 1); err != nil {
			wantNamed(t, err, missing)
		}
	}
	received := broker.Read(t, destination, 6, patience)
	if len(received) != 6 {
		t.Errorf("%d messages in the destination that exists, want 6", len(received))
	}
	wantOrder(t, received)
}

// wantNamed expects an error to name the destination that it is about.
func wantNamed(t *testing.T, err error, destination sinks.Destination) {
	t.Helper()
	name := destination.Name
	if destination.Exchange != "" {
		name = destination.Exchange
	}
	if !strings.Contains(err.Error(), name) {
		t.Errorf("the error does not name %q: %v", name, err)
	}
}

func testPingVerify(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	if err := publisher.Ping(t.Context()); err != nil {
		t.Errorf("Ping: %v", err)
	}
	if err := publisher.Verify(t.Context(), broker.NewDestination(t)); err != nil {
		t.Errorf("Verify of a destination that exists: %v", err)
	}
	missing := broker.MissingDestination(t)
	for range 2 { // the first must not have created it
		err := publisher.Verify(t.Context(), missing)
		if err == nil {
			t.Fatalf("Verify of the missing %+v: no error", missing)
		}
		if scope := sinks.ScopeOf(err); scope != sinks.ScopeDestination {
			t.Errorf("Verify: scope %s, want destination (%v)", scope, err)
		}
		wantNamed(t, err, missing)
		if !strings.Contains(err.Error(), "create") {
			t.Errorf("Verify does not say to create what is missing: %v", err)
		}
	}
	if err := publisher.Ping(t.Context()); err != nil {
		t.Errorf("Ping after Verify: %v", err)
	}
}
