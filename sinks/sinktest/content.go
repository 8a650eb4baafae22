package sinktest

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/sinks"
)

func testContent(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destination := broker.NewDestination(t)
	large := make([]byte, 900_000)
	_, _ = rand.Read(large) // incompressible, so that it stays large on the wire
	binary := make([]byte, 256)
	for i := range binary {
		binary[i] = byte(i)
	}

	var w writer
	plain := w.message(destination, []byte("order-1"), []byte(`{"total":42}`))
	nullKey := w.message(destination, nil, []byte("null key"))
	emptyKey := w.message(destination, []byte{}, []byte("empty key"))
	nullPayload := w.message(destination, []byte("order-2"), nil)
	emptyPayload := w.message(destination, []byte("order-3"), []byte{})
	utf8 := w.message(destination, []byte("заказ-№4"), []byte("\"žluťoučký 🐎 ﷽\""))
	utf8.Type = "ЗаказРазмещён"
	utf8.Headers = []sinks.Header{{Name: "grüße", Value: "日本語 🎌"}}
	bytesOnly := w.message(destination, []byte("order-5"), binary)
	bytesOnly.ContentType = "application/octet-stream"
	noType := w.message(destination, []byte("order-6"), []byte("no type"))
	noType.Type = ""
	manyHeaders := w.message(destination, []byte("order-7"), []byte("headers"))
	for i := range 100 {
		manyHeaders.Headers = append(manyHeaders.Headers, sinks.Header{Name: fmt.Sprintf("header-%03d", i), Value: strings.Repeat("v", i)})
	}
	trace := w.message(destination, []byte("order-8"), []byte("trace"))
	trace.Headers = []sinks.Header{{Name: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, {Name: "empty", Value: ""}}
	big := w.message(destination, []byte("order-9"), large)

	messages := []sinks.Message{plain, nullKey, emptyKey, nullPayload, emptyPayload, utf8, bytesOnly, noType, manyHeaders, trace, big}
	mustPublish(t, publisher, messages)
	wantExactly(t, broker, messages, broker.Read(t, destination, len(messages), patience))
}

func testNothing(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	if results := publisher.Publish(t.Context(), nil); results != nil {
		t.Errorf("Publish of no messages: %v, want nil", results)
	}
}

func testReplayed(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destination := broker.NewDestination(t)
	var w writer
	messages := w.numbered(destination, 2, "order-1")
	messages[1].Replayed = true
	mustPublish(t, publisher, messages)
	wantExactly(t, broker, messages, broker.Read(t, destination, len(messages), patience))
}

// testMemory changes what a caller may change once Publish returned.
func testMemory(t *testing.T, broker Broker) {
	publisher := open(t, broker)
	destination := broker.NewDestination(t)
	var w writer
	var sent []sinks.Message
	for range 20 {
		messages := w.numbered(destination, 100, keys("order", 7)...)
		for _, m := range messages {
			m.Key, m.Payload = bytes.Clone(m.Key), bytes.Clone(m.Payload)
			sent = append(sent, m)
		}
		mustPublish(t, publisher, messages)
		for i := range messages {
			scribble(messages[i].Key)
			scribble(messages[i].Payload)
			messages[i] = sinks.Message{}
		}
	}
	received := broker.Read(t, destination, len(sent), patience)
	wantExactly(t, broker, sent, received)
	wantOrder(t, received)
}

func scribble(b []byte) {
	for i := range b {
		b[i] = '!'
	}
}
