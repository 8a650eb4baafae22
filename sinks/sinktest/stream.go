package sinktest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

// batchesOf cuts messages into batches of 1 to 7.
func batchesOf(messages []sinks.Message) (batches [][]sinks.Message) {
	for i := 0; len(messages) > 0; i++ {
		n := min(1+i%7, len(messages))
		batches = append(batches, messages[:n])
		messages = messages[n:]
	}
	return batches
}

func testStream(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destination := broker.NewDestination(t)
	var w writer
	messages := w.numbered(destination, 4000, keys("order", 13)...)
	for i := range messages {
		if i%50 == 0 {
			messages[i].Key = nil
		}
	}
	stream := publisher.Stream(sinks.Window{})
	if err := results(t, stream.Send(t.Context(), nil)); err != nil {
		t.Errorf("an empty batch: %v", err)
	}
	var receipts []sinks.Receipt
	for _, batch := range batchesOf(messages) {
		receipts = append(receipts, stream.Send(t.Context(), batch))
	}
	for i, receipt := range receipts {
		if err := results(t, receipt); err != nil {
			t.Fatalf("batch %d: %v", i, err)
		}
	}
	received := broker.Read(t, destination, len(messages), patience)
	wantExactly(t, broker, messages, received)
	wantOrder(t, received)
}

func testStreamWindow(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destination := broker.NewDestination(t)
	var w writer
	messages := w.numbered(destination, 1000, keys("order", 13)...)
	size := messages[0].Size() // the smallest, as its number is the shortest
	for _, window := range []sinks.Window{{Messages: 20}, {Bytes: 20 * size}} {
		stream := publisher.Stream(window)
		var receipts []sinks.Receipt
		most := 0
		for i, batch := range append(batchesOf(messages[:500]), messages[500:]) {
			receipts = append(receipts, stream.Send(t.Context(), batch))
			flying := 0
			for _, receipt := range receipts {
				select {
				case <-receipt.Done():
				default:
					flying++
				}
			}
			if len(batch) > 20 && flying > 1 {
				t.Errorf("window %+v: batch %d of %d messages is in flight beside others", window, i, len(batch))
			}
			most = max(most, flying)
		}
		for _, receipt := range receipts {
			if err := results(t, receipt); err != nil {
				t.Fatal(err)
			}
		}
		if most < 2 || most > 20 {
			t.Errorf("window %+v: up to %d batches in flight", window, most)
		}
	}
	received := broker.Read(t, destination, 2*len(messages), patience)
	if len(received) != 2*len(messages) {
		t.Errorf("%d messages, want %d", len(received), 2*len(messages))
	}
}

// testStreamRefused has a refused message in the middle of many batches in flight.
func testStreamRefused(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destination := broker.NewDestination(t)
	var w writer
	messages := w.numbered(destination, 3000, "a", "b", "c")
	messages[1500].Payload = []byte("refused")
	broker.Refuse(&messages[1500]) // of key a
	stream := publisher.Stream(sinks.Window{})
	batches := batchesOf(messages)
	var receipts []sinks.Receipt
	for _, batch := range batches {
		receipts = append(receipts, stream.Send(t.Context(), batch))
	}
	var answers []error
	for i, receipt := range receipts {
		got := results(t, receipt)
		checkResults(t, batches[i], got)
		for at := range batches[i] {
			answers = append(answers, result(got, at))
		}
	}
	var acknowledged, behind []sinks.Message
	for i, m := range messages {
		switch {
		case i == 1500:
			wantScope(t, answers, sinks.ScopeMessage, i)
		case i > 1500 && string(m.Key) == "a":
			wantScope(t, answers, sinks.ScopeSkipped, i)
			behind = append(behind, m)
		default:
			wantAcknowledged(t, answers, i)
			acknowledged = append(acknowledged, m)
		}
	}
	// It stays so until the caller says that he knows.
	late := w.numbered(destination, 3, "a", "b", "c")
	got := results(t, stream.Send(t.Context(), late))
	wantScope(t, got, sinks.ScopeSkipped, 0)
	wantAcknowledged(t, got, 1, 2)
	acknowledged = append(acknowledged, late[1:]...)
	behind = append(behind, late[0])

	stream.Resume(late) // of which b and c are not broken
	for _, batch := range batchesOf(behind) {
		receipts = append(receipts, stream.Send(t.Context(), batch))
	}
	for _, receipt := range receipts[len(batches):] {
		if err := results(t, receipt); err != nil {
			t.Fatalf("after Resume: %v", err)
		}
	}
	acknowledged = append(acknowledged, behind...)
	received := broker.Read(t, destination, len(acknowledged), patience)
	wantExactly(t, broker, acknowledged, received)
	wantOrder(t, received)
}

func testStreamMissingDestination(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destination, missing := broker.NewDestination(t), broker.MissingDestination(t)
	var w writer
	stream := publisher.Stream(sinks.Window{})
	var receipts []sinks.Receipt
	for range 20 {
		receipts = append(receipts, stream.Send(t.Context(), []sinks.Message{
			w.message(destination, []byte("a"), nil), w.message(missing, []byte("a"), nil), w.message(missing, nil, nil),
		}))
	}
	for i, receipt := range receipts {
		got := results(t, receipt)
		wantAcknowledged(t, got, 0)
		wantScope(t, got, sinks.ScopeDestination, 2)
		if scope := sinks.ScopeOf(result(got, 1)); result(got, 1) == nil || i == 0 && scope != sinks.ScopeDestination || scope == sinks.ScopeMessage {
			t.Errorf("batch %d: %v", i, result(got, 1))
		}
	}
	received := broker.Read(t, destination, 20, patience)
	if len(received) != 20 {
		t.Errorf("%d messages in the destination that exists, want 20", len(received))
	}
	wantOrder(t, received)
}

// testStreamExpired ends the contexts of batches in flight at many moments.
func testStreamExpired(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destination := broker.NewDestination(t)
	var w writer
	mustPublish(t, publisher, w.numbered(destination, 1, "warm"))
	total, failed := 1, 0
	for limit := time.Millisecond; limit < 30*time.Millisecond; limit += 3 * time.Millisecond {
		stream := publisher.Stream(sinks.Window{Messages: 700})
		messages := w.numbered(destination, 1000, keys("order", 31)...)
		total += len(messages)
		failed += Relay(t, stream, batchesOf(messages), limit)
	}
	if failed == 0 {
		t.Error("no context expired: the test shows nothing")
	}
	wantEach(t, broker.Read(t, destination, total, patience), total)
}

// testStreamClose closes the publisher while batches are in flight and one waits for
// room.
func testStreamClose(t *testing.T, broker Broker) {
	destination := broker.NewDestination(t)
	before := goroutines()
	publisher := broker.Publisher(t)
	var w writer
	mustPublish(t, publisher, w.numbered(destination, 1, "warm"))
	stream := publisher.Stream(sinks.Window{Messages: 5000})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answered := make(chan []sinks.Receipt, 1)
	go func() {
		var receipts []sinks.Receipt
		for range 200 {
			receipts = append(receipts, stream.Send(ctx, w.numbered(destination, 1000, keys("order", 31)...)))
		}
		answered <- receipts
	}()
	time.Sleep(20 * time.Millisecond) // not for luck: any moment will do
	if err := publisher.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	select {
	case receipts := <-answered:
		for _, receipt := range receipts {
			select {
			case <-receipt.Done():
			case <-time.After(soon):
				t.Fatalf("a batch is not answered %s after Close", soon)
			}
		}
		last := receipts[len(receipts)-1].Results()
		if err := result(last, 0); err == nil || sinks.ReasonOf(err) != "closed" {
			t.Errorf("the last batch: %v, want one that says that the sink is closed", err)
		}
	case <-time.After(2 * soon):
		t.Fatalf("Send blocks %s after Close", 2*soon)
	}
	cancel()
	wantNoGoroutines(t, before)
}

// wantNoGoroutines waits until there are no other goroutines than before.
func wantNoGoroutines(t *testing.T, before map[string]string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var left []string
		for id, stack := range goroutines() {
			if _, old := before[id]; !old {
				left = append(left, stack)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(fmt.Sprintf("%d goroutines outlive Close:\n\n", len(left)), strings.Join(left, "\n\n"))
		}
	}
}
