package source_test

import (
	"slices"
	"testing"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

// Only an operator's mark makes a message replayed, and it goes no further.
func TestReplayMark(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key, headers) VALUES
		('t', 'k', '{"a": "1", "outbox-relay:replayed": "true", "zz": "2"}'),
		('t', 'k', '{"outbox-relay:replayed": "true"}'),
		('t', 'k', '{"message-replayed": "true"}'),
		('t', 'k', '{"a": "1"}')`)
	batch := claim(t, claimer(db.Pool, nil), source.Exclusion{})
	if batch == nil || len(batch.Messages()) != 4 {
		t.Fatalf("claimed %v", batch)
	}
	for i, want := range []struct {
		replayed bool
		headers  []sinks.Header
	}{
		{true, []sinks.Header{{Name: "a", Value: "1"}, {Name: "zz", Value: "2"}}},
		{true, nil},
		{false, []sinks.Header{{Name: "message-replayed", Value: "true"}}},
		{false, []sinks.Header{{Name: "a", Value: "1"}}},
	} {
		m := batch.Messages()[i]
		byName := func(a, b sinks.Header) int { return len(a.Name) - len(b.Name) }
		if m.Replayed != want.replayed || !slices.Equal(slices.SortedFunc(slices.Values(m.Headers), byName), want.headers) {
			t.Errorf("row %d: replayed %t with headers %v; want %t, %v", i, m.Replayed, m.Headers, want.replayed, want.headers)
		}
	}
}
