package sinktest

import (
	"fmt"
	"sync"
	"testing"

	"github.com/outboxrelay/relay/sinks"
)

func testOrder(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destination := broker.NewDestination(t)
	var w writer
	messages := w.numbered(destination, 6000, keys("order", 97)...)
	for i := range messages {
		if i%50 == 0 {
			messages[i].Key = nil
		}
	}
	mustPublish(t, publisher, messages)
	received := broker.Read(t, destination, len(messages), patience)
	wantExactly(t, broker, messages, received)
	wantOrder(t, received)
}

func testOrderAcrossCalls(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destination := broker.NewDestination(t)
	var w writer
	var sent []sinks.Message
	for i := range 50 {
		messages := w.numbered(destination, 1+i%13, keys("order", 3)...)
		mustPublish(t, publisher, messages)
		sent = append(sent, messages...)
	}
	received := broker.Read(t, destination, len(sent), patience)
	wantExactly(t, broker, sent, received)
	wantOrder(t, received)
}

// testConcurrentCalls has many callers with keys of their own in two shared
// destinations.
func testConcurrentCalls(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destinations := [2]sinks.Destination{broker.NewDestination(t), broker.NewDestination(t)}
	const callers, calls, size = 16, 10, 60
	sent := make([][2][]sinks.Message, callers)
	failures := make(chan error, callers*calls)
	var all sync.WaitGroup
	for caller := range callers {
		all.Go(func() {
			w := writer{sequence: int64(caller) * 1_000_000}
			for call := range calls {
				which := (caller + call) % 2
				messages := w.numbered(destinations[which], size, keys(fmt.Sprintf("caller-%d", caller), 5)...)
				sent[caller][which] = append(sent[caller][which], messages...)
				for i, err := range publisher.Publish(t.Context(), messages) {
					if err != nil {
						failures <- fmt.Errorf("caller %d, call %d, message %d: %w", caller, call, i, err)
						break
					}
				}
			}
		})
	}
	all.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
	for which, destination := range destinations {
		var expected []sinks.Message
		for _, of := range sent {
			expected = append(expected, of[which]...)
		}
		received := broker.Read(t, destination, len(expected), patience)
		wantExactly(t, broker, expected, received)
		wantOrder(t, received)
	}
}
