package sinktest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

// writer makes messages with ascending sequences, as rows of one table have.
type writer struct {
	sequence int64
}

// message returns a complete message; key nil stays nil.
func (w *writer) message(destination sinks.Destination, key []byte, payload []byte) sinks.Message {
	w.sequence++
	m := sinks.Message{
		Sequence:    w.sequence,
		Topic:       "orders",
		Destination: destination.Name,
		Exchange:    destination.Exchange,
		Key:         key,
		Type:        "OrderPlaced",
		Payload:     payload,
		ContentType: "application/json",
		CreatedAt:   time.Date(2026, 2, 3, 4, 5, 6, 789012000, time.UTC),
	}
	_, _ = rand.Read(m.ID[:])
	m.ID[6] = m.ID[6]&0x0f | 0x40
	m.ID[8] = m.ID[8]&0x3f | 0x80
	return m
}

// numbered returns n messages that go round the keys.
func (w *writer) numbered(destination sinks.Destination, n int, keys ...string) []sinks.Message {
	messages := make([]sinks.Message, n)
	for i := range messages {
		messages[i] = w.message(destination, []byte(keys[i%len(keys)]), fmt.Appendf(nil, `{"n":%d}`, i))
	}
	return messages
}

// keys returns n different keys.
func keys(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return all
}

// messageID is the canonical text of a UUID.
func messageID(id [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// open returns a publisher that the test's end closes.
func open(t *testing.T, broker Broker) sinks.Streamer {
	t.Helper()
	publisher := broker.Publisher(t)
	t.Cleanup(func() {
		if err := publisher.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return publisher
}

// publish calls Publish with the suite's patience and checks the shape of the
// result.
func publish(ctx context.Context, t *testing.T, publisher sinks.Publisher, messages []sinks.Message) []error {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	results := publisher.Publish(ctx, messages)
	checkResults(t, messages, results)
	return results
}

// mustPublish expects every message to be acknowledged.
func mustPublish(t *testing.T, publisher sinks.Publisher, messages []sinks.Message) {
	t.Helper()
	for i, err := range publish(t.Context(), t, publisher, messages) {
		if err != nil {
			t.Fatalf("message %d of %d, key %q: %v", i, len(messages), messages[i].Key, err)
		}
	}
}

// checkResults expects nil or one result per message with at least one error,
// and that the acknowledged messages of each destination and key are a prefix.
func checkResults(t *testing.T, messages []sinks.Message, results []error) {
	t.Helper()
	if results == nil {
		return
	}
	if len(results) != len(messages) {
		t.Fatalf("%d results for %d messages", len(results), len(messages))
	}
	type ordered struct{ exchange, destination, key string }
	failed := map[ordered]int{}
	failures := 0
	for i, m := range messages {
		if results[i] != nil {
			failures++
		}
		if m.Key == nil {
			continue
		}
		of := ordered{m.Exchange, m.Destination, string(m.Key)}
		first, broken := failed[of]
		switch {
		case results[i] != nil && !broken:
			failed[of] = i
		case results[i] == nil && broken:
			t.Errorf("message %d of key %q is acknowledged although message %d before it failed: %v", i, m.Key, first, results[first])
		}
	}
	if failures == 0 {
		t.Error("results without any error: Publish returns nil when all is acknowledged")
	}
}

// result returns the error of message i.
func result(results []error, i int) error {
	if results == nil {
		return nil
	}
	return results[i]
}

// wantAcknowledged expects the messages at the indexes to have no error.
func wantAcknowledged(t *testing.T, results []error, indexes ...int) {
	t.Helper()
	for _, i := range indexes {
		if err := result(results, i); err != nil {
			t.Errorf("message %d: got %v, want it acknowledged", i, err)
		}
	}
}

// wantScope expects the messages at the indexes to have failed with a scope.
func wantScope(t *testing.T, results []error, scope sinks.Scope, indexes ...int) {
	t.Helper()
	for _, i := range indexes {
		err := result(results, i)
		if err == nil {
			t.Errorf("message %d is acknowledged, want an error of scope %s", i, scope)
			continue
		}
		if got := sinks.ScopeOf(err); got != scope {
			t.Errorf("message %d: scope %s, want %s (%v)", i, got, scope, err)
		}
		if sinks.ReasonOf(err) == "other" {
			t.Errorf("message %d: no reason for metrics in %v", i, err)
		}
		if skipped := errors.Is(err, sinks.ErrSkipped); skipped != (scope == sinks.ScopeSkipped) {
			t.Errorf("message %d: errors.Is(err, ErrSkipped) is %t with scope %s", i, skipped, scope)
		}
	}
}

// acknowledged returns the messages that have no error.
func acknowledged(messages []sinks.Message, results []error) []sinks.Message {
	var all []sinks.Message
	for i, m := range messages {
		if result(results, i) == nil {
			all = append(all, m)
		}
	}
	return all
}

// wantExactly expects received to hold each message once and nothing else, and
// each message as it was sent.
func wantExactly(t *testing.T, broker Broker, messages []sinks.Message, received []Received) {
	t.Helper()
	sent := map[string]sinks.Message{}
	for _, m := range messages {
		sent[messageID(m.ID)] = m
	}
	for _, r := range received {
		m, ok := sent[r.MessageID]
		if !ok {
			t.Errorf("message %s, sequence %d: received twice or never sent", r.MessageID, r.Sequence)
			continue
		}
		delete(sent, r.MessageID)
		wantSame(t, broker.Traits(), m, r)
	}
	for id, m := range sent {
		t.Errorf("message %s, sequence %d, key %q: acknowledged but not in the broker", id, m.Sequence, m.Key)
	}
}

// wantSame expects a message to have arrived as it was sent.
func wantSame(t *testing.T, traits Traits, m sinks.Message, r Received) {
	t.Helper()
	name := fmt.Sprintf("message with sequence %d", m.Sequence)
	if !bytes.Equal(m.Key, r.Key) || traits.NullKey && (m.Key == nil) != (r.Key == nil) {
		t.Errorf("%s: key %q (null: %t), sent %q (null: %t)", name, r.Key, r.Key == nil, m.Key, m.Key == nil)
	}
	if !bytes.Equal(m.Payload, r.Payload) || traits.NullPayload && (m.Payload == nil) != (r.Payload == nil) {
		t.Errorf("%s: payload of %d bytes (null: %t), sent %d bytes (null: %t), or they differ", name, len(r.Payload), r.Payload == nil, len(m.Payload), m.Payload == nil)
	}
	if r.Type != m.Type {
		t.Errorf("%s: type %q, sent %q", name, r.Type, m.Type)
	}
	if r.ContentType != m.ContentType {
		t.Errorf("%s: content type %q, sent %q", name, r.ContentType, m.ContentType)
	}
	if r.Sequence != m.Sequence {
		t.Errorf("%s: sequence %d", name, r.Sequence)
	}
	if !r.CreatedAt.Equal(m.CreatedAt) && !r.CreatedAt.Equal(m.CreatedAt.Truncate(time.Second)) {
		t.Errorf("%s: created at %s, sent %s", name, r.CreatedAt, m.CreatedAt)
	}
	for _, h := range m.Headers {
		if got, ok := r.Headers[h.Name]; !ok || got != h.Value {
			t.Errorf("%s: header %q is %q (there: %t), sent %q", name, h.Name, got, ok, h.Value)
		}
	}
	if replayed := r.Headers["message-replayed"] == "true"; replayed != m.Replayed {
		t.Errorf("%s: message-replayed is %t, want %t", name, replayed, m.Replayed)
	}
}

// wantEach expects so many different messages, in order.
func wantEach(t *testing.T, received []Received, total int) {
	t.Helper()
	wantOrder(t, received)
	seen := map[string]bool{}
	for _, r := range received {
		seen[r.MessageID] = true
	}
	if len(seen) != total {
		t.Errorf("%d different messages in the broker, want %d", len(seen), total)
	}
}

// wantOrder expects the first occurrences of each key to ascend in sequence,
// and a key to be in one partition only.
func wantOrder(t *testing.T, received []Received) {
	t.Helper()
	highest := map[string]int64{}
	partition := map[string]int{}
	seen := map[string]bool{}
	for _, r := range received {
		if r.Key == nil {
			continue
		}
		key := string(r.Key)
		if p, ok := partition[key]; ok && p != r.Partition {
			t.Fatalf("key %q is in partitions %d and %d", key, p, r.Partition)
		}
		partition[key] = r.Partition
		if seen[r.MessageID] {
			continue
		}
		seen[r.MessageID] = true
		if r.Sequence < highest[key] {
			t.Fatalf("key %q: sequence %d came after %d", key, r.Sequence, highest[key])
		}
		highest[key] = r.Sequence
	}
}
