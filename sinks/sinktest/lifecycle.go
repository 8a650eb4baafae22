package sinktest

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

// soon is how long Publish may take to return after its context or its
// publisher ended.
const soon = 3 * time.Second

func testCancelledBefore(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destination := broker.NewDestination(t)
	var w writer
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	messages := w.numbered(destination, 100, keys("order", 7)...)
	began := time.Now()
	results := publish(ctx, t, publisher, messages)
	if took := time.Since(began); took > soon {
		t.Errorf("Publish took %s with a context that had ended", took)
	}
	for i := range messages {
		wantScope(t, results, sinks.ScopeSink, i)
	}
	mustPublish(t, publisher, messages)
	received := broker.Read(t, destination, len(messages), patience)
	wantExactly(t, broker, messages, received)
	wantOrder(t, received)
}

// testExpired ends contexts at many moments of a call. What failed is sent
// again until it is acknowledged, as the relay does, and the order of first
// occurrences must hold.
func testExpired(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destination := broker.NewDestination(t)
	var w writer
	mustPublish(t, publisher, w.numbered(destination, 1, "warm"))
	pending := w.numbered(destination, 5000, keys("order", 31)...)
	total := len(pending) + 1
	expirations := 0
	for bound := time.Millisecond; len(pending) > 0; bound += 3 * time.Millisecond {
		ctx, cancel := context.WithTimeout(t.Context(), bound)
		began := time.Now()
		results := publisher.Publish(ctx, pending)
		cancel()
		if took := time.Since(began); took > bound+soon {
			t.Fatalf("Publish took %s with a context of %s", took, bound)
		}
		checkResults(t, pending, results)
		if results == nil {
			break
		}
		expirations++
		var failed []sinks.Message
		for i, m := range pending {
			if results[i] != nil {
				failed = append(failed, m)
			}
		}
		pending = failed
		if expirations > 2000 {
			t.Fatalf("%d messages are still not acknowledged after %d calls: %v", len(pending), expirations, results[0])
		}
	}
	if expirations == 0 {
		t.Error("no context expired: the test shows nothing")
	}
	wantEach(t, broker.Read(t, destination, total, patience), total)
}

func testCloseInTheMiddle(t *testing.T, broker Broker) {
	publisher := broker.Publisher(t)
	destination := broker.NewDestination(t)
	var w writer
	mustPublish(t, publisher, w.numbered(destination, 1, "warm"))
	messages := w.numbered(destination, 50_000, keys("order", 31)...)
	done := make(chan []error, 1)
	go func() { done <- publisher.Publish(t.Context(), messages) }()
	time.Sleep(20 * time.Millisecond) // not for luck: any moment of the call will do
	if err := publisher.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	select {
	case results := <-done:
		checkResults(t, messages, results)
	case <-time.After(soon):
		t.Fatalf("Publish goes on %s after Close", soon)
	}
}

func testAfterClose(t *testing.T, broker Broker) {
	publisher := broker.Publisher(t)
	destination := broker.NewDestination(t)
	var w writer
	messages := w.numbered(destination, 10, "order-1")
	mustPublish(t, publisher, messages)
	if err := publisher.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := publisher.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	began := time.Now()
	results := publish(t.Context(), t, publisher, messages)
	if took := time.Since(began); took > soon {
		t.Errorf("Publish took %s after Close", took)
	}
	for i := range messages {
		wantScope(t, results, sinks.ScopeSink, i)
	}
	if err := publisher.Ping(t.Context()); err == nil {
		t.Error("Ping after Close: no error")
	}
	if err := publisher.Verify(t.Context(), destination); err == nil {
		t.Error("Verify after Close: no error")
	}
}

func testGoroutines(t *testing.T, broker Broker) {
	destination, missing := broker.NewDestination(t), broker.MissingDestination(t)
	before := goroutines()
	publisher := broker.Publisher(t)
	var w writer
	mustPublish(t, publisher, w.numbered(destination, 1000, keys("order", 31)...))
	publish(t.Context(), t, publisher, w.numbered(missing, 3, "order-1"))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Millisecond)
	publish(ctx, t, publisher, w.numbered(destination, 5000, keys("order", 31)...))
	cancel()
	if err := publisher.Ping(t.Context()); err != nil {
		t.Errorf("Ping: %v", err)
	}
	if err := publisher.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	wantNoGoroutines(t, before)
}

// goroutines returns the stack of every goroutine by its name.
func goroutines() map[string]string {
	buffer := make([]byte, 16<<20)
	buffer = buffer[:runtime.Stack(buffer, true)]
	all := map[string]string{}
	for stack := range strings.SplitSeq(string(buffer), "\n\n") {
		name, _, _ := strings.Cut(stack, " [")
		all[name] = stack
	}
	return all
}
