package rabbitmq

import (
	"errors"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/sinks"
)

func keyed(keys ...string) []sinks.Message {
	messages := make([]sinks.Message, len(keys))
	for i, key := range keys {
		messages[i] = sinks.Message{Destination: "orders"}
		if key != "" {
			messages[i].Key = []byte(key)
		}
	}
	return messages
}

// TestPrefixes settles the messages of a call in many ways.
func TestPrefixes(t *testing.T) {
	nack := nacked("", "orders")
	gone := lost("broker", errors.New("gone"))
	messages := keyed("a", "b", "a", "", "a", "b")
	for _, test := range []struct {
		name   string
		order  string
		settle map[int32]error
		want   []error
	}{
		{"all good", OrderPipelined, nil, nil},
		{"acknowledged behind a failure", OrderPipelined, map[int32]error{0: nack}, []error{nack, nil, sinks.ErrSkipped, nil, sinks.ErrSkipped, nil}},
		{"later failure known first", OrderPipelined, map[int32]error{4: nack, 2: nack}, []error{nil, nil, nack, nil, sinks.ErrSkipped, nil}},
		{"without key", OrderPipelined, map[int32]error{3: nack}, []error{nil, nil, nil, nack, nil, nil}},
		{"strict", OrderStrict, map[int32]error{2: nack, 1: nack}, []error{nil, nack, nack, nil, sinks.ErrSkipped, sinks.ErrSkipped}},
		{"concerns all", OrderStrict, map[int32]error{2: gone}, []error{nil, nil, gone, nil, gone, nil}},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := Defaults()
			config.Order = test.order
			c := newCall(messages, config, sinks.Envelope{})
			for index, err := range test.settle {
				c.settle(index, err)
			}
			c.settleRest(nil, func(int32) error { return nil })
			got := c.prefixes()
			if len(got) != len(test.want) {
				t.Fatalf("got %v, want %v", got, test.want)
			}
			for i := range got {
				if got[i] != test.want[i] { //nolint:errorlint // the very same error
					t.Errorf("message %d: %v, want %v", i, got[i], test.want[i])
				}
			}
			if c.unsettled != 0 {
				t.Errorf("%d messages unsettled", c.unsettled)
			}
		})
	}
}

func TestPlan(t *testing.T) {
	messages := keyed("a", "a", "b", "", "", "a")
	messages[5].Exchange = "other"
	config := Defaults()
	c := newCall(messages, config, sinks.Envelope{})
	if len(c.parts) != 2 || len(c.parts[0].ready) != 4 || len(c.parts[1].ready) != 1 || c.follower[0] != 1 {
		t.Errorf("strict: parts %d, ready %v, followers %v", len(c.parts), c.parts[0].ready, c.follower)
	}
	config.Order = OrderPipelined
	c = newCall(messages, config, sinks.Envelope{})
	if len(c.parts[0].ready) != 5 {
		t.Errorf("pipelined: ready %v", c.parts[0].ready)
	}

	// What AMQP cannot carry is settled before there is a connection, and with
	// it the rest of its key, but not what comes before it.
	messages = keyed("a", "a", "a", "b")
	messages[1].Type = strings.Repeat("x", 256)
	for _, order := range []string{OrderStrict, OrderPipelined} {
		config.Order = order
		c = newCall(messages, config, sinks.Envelope{})
		if c.unsettled != 2 || c.states[0] != waiting || c.states[3] != waiting {
			t.Errorf("%s: states %v", order, c.states)
		}
		if ready := c.unsent(c.parts[0].ready); len(ready) != 2 {
			t.Errorf("%s: ready %v", order, ready)
		}
		if !errors.Is(c.results[2], sinks.ErrSkipped) || sinks.ScopeOf(c.results[1]) != sinks.ScopeMessage {
			t.Errorf("%s: results %v", order, c.results)
		}
	}
}
