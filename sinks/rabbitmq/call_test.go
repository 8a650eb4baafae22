package rabbitmq

import (
	"context"
	"errors"
	"strings"
	"testing"
	"unsafe"

	"github.com/outboxrelay/relay/sinks"
)

// planned is a call of a stream that has no connection.
func planned(messages []sinks.Message, config Config) (*sender, *call) {
	s := (&Publisher{config: config}).Stream(sinks.Window{}).(*sender)
	return s, planNext(context.Background(), s, messages)
}

func planNext(ctx context.Context, s *sender, messages []sinks.Message) *call {
	c := newCall(ctx, s, messages)
	s.plan(c)
	return c
}

func answered(c *call) bool {
	select {
	case <-c.Done():
		return true
	default:
		return false
	}
}

// settleAll acknowledges the messages of a call but for one.
func settleAll(s *sender, c *call, but int, err error) {
	for i := range c.deliveries {
		if i == but {
			s.settle(&c.deliveries[i], err)
		} else {
			s.settle(&c.deliveries[i], nil)
		}
	}
	s.answer()
}

// TestPrefixAcrossCalls has the second call of a stream acknowledged before the first
// fails, as order pipelined allows.
func TestPrefixAcrossCalls(t *testing.T) {
	nack := nacked("", "orders")
	config := Defaults()
	config.Order = OrderPipelined
	s, first := planned(keyed("a", "b"), config)
	second := planNext(t.Context(), s, keyed("a", "b"))
	settleAll(s, second, none, nil)
	if answered(second) {
		t.Fatal("the second call is answered before it is known whether its keys are broken")
	}
	settleAll(s, first, 0, nack)
	if got := first.Results(); got[0] != nack || got[1] != nil { //nolint:errorlint // the very same error
		t.Errorf("the first call: %v", got)
	}
	if got := second.Results(); !errors.Is(got[0], sinks.ErrSkipped) || got[1] != nil {
		t.Errorf("the second call: %v", got)
	}
	third := planNext(t.Context(), s, keyed("a", "b"))
	settleAll(s, third, none, nil)
	if got := third.Results(); !errors.Is(got[0], sinks.ErrSkipped) || got[1] != nil {
		t.Errorf("the third call: %v", got)
	}
}

// TestExpiredBeforeItsTurn has the second call expire while the first is unresolved:
// what was acknowledged behind an unresolved message fails, whatever becomes of that.
func TestExpiredBeforeItsTurn(t *testing.T) {
	config := Defaults()
	config.Order = OrderPipelined
	s, first := planned(keyed("a", "b"), config)
	s.settle(&first.deliveries[1], nil)
	ctx, cancel := context.WithCancel(t.Context())
	second := planNext(ctx, s, keyed("a", "b"))
	settleAll(s, second, none, nil)
	cancel()
	s.expire()
	s.giveUp()
	s.answer()
	if !answered(second) || answered(first) {
		t.Fatalf("answered: the first %t, the second %t", answered(first), answered(second))
	}
	if got := second.Results(); !errors.Is(got[0], sinks.ErrSkipped) || got[1] != nil {
		t.Errorf("the second call: %v", got)
	}
	third := planNext(t.Context(), s, keyed("a"))
	settleAll(s, first, none, nil)
	settleAll(s, third, none, nil)
	if got := third.Results(); len(got) == 0 || !errors.Is(got[0], sinks.ErrSkipped) {
		t.Errorf("the third call: %v", got)
	}
}

// TestResumeWhileUnderWay resumes a key while a call that was sent before is not answered
// yet: that one still fails, what is sent from then on does not.
func TestResumeWhileUnderWay(t *testing.T) {
	nack := nacked("", "orders")
	for _, order := range []string{OrderStrict, OrderPipelined} {
		t.Run(order, func(t *testing.T) {
			config := Defaults()
			config.Order = order
			s, first := planned(keyed("a"), config)
			before := planNext(t.Context(), s, keyed("a", "b"))
			settleAll(s, first, 0, nack)
			key, _ := s.chainKey(&first.messages[0])
			s.resume([]chainKey{key})
			after := planNext(t.Context(), s, keyed("a"))
			s.resume([]chainKey{key}) // it is whole, and stays as it is
			settleAll(s, after, none, nil)
			settleAll(s, before, none, nil)
			if got := before.Results(); len(got) == 0 || !errors.Is(got[0], sinks.ErrSkipped) || got[1] != nil {
				t.Errorf("before: %v", got)
			}
			if got := after.Results(); got != nil {
				t.Errorf("after: %v", got)
			}
			if len(s.chains) > 0 || len(s.broken) > 0 {
				t.Errorf("left are %v and %v", s.chains, s.broken)
			}
		})
	}
}

// TestAnsweredCallKeepsNoMemory writes over the memory of an answered call, whose chain
// goes on in the next.
func TestAnsweredCallKeepsNoMemory(t *testing.T) {
	memory := []byte("orders")
	messages := keyed("a")
	messages[0].Destination = unsafe.String(unsafe.SliceData(memory), len(memory))
	s, first := planned(messages, Defaults())
	second := planNext(t.Context(), s, keyed("a"))
	settleAll(s, first, none, nil)
	if !answered(first) {
		t.Fatal("the first call is not answered")
	}
	copy(memory, "xxxxxx")
	third := planNext(t.Context(), s, keyed("a"))
	if second.deliveries[0].follower != &third.deliveries[0] {
		t.Error("the third call does not follow the second")
	}
	settleAll(s, second, none, nil)
	settleAll(s, third, none, nil)
	if len(s.chains) > 0 {
		t.Errorf("left are %v", s.chains)
	}
}

// none is no message.
const none = -1

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
			s, c := planned(messages, config)
			for index, err := range test.settle {
				s.settle(&c.deliveries[index], err)
			}
			s.settleRest(nil, func(*delivery) error { return nil })
			s.answer()
			got := c.Results()
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
	s, c := planned(messages, config)
	if len(s.parts) != 2 || len(s.parts[0].ready) != 4 || len(s.parts[1].ready) != 1 || c.deliveries[0].follower != &c.deliveries[1] {
		t.Errorf("strict: parts %d, %d and %d ready, follower %v", len(s.parts), len(s.parts[0].ready), len(s.parts[1].ready), c.deliveries[0].follower)
	}
	config.Order = OrderPipelined
	s, _ = planned(messages, config)
	if len(s.parts[0].ready) != 5 {
		t.Errorf("pipelined: %d ready", len(s.parts[0].ready))
	}

	// What AMQP cannot carry is settled before there is a connection, and with
	// it the rest of its key, but not what comes before it.
	messages = keyed("a", "a", "a", "b")
	messages[1].Type = strings.Repeat("x", 256)
	for _, order := range []string{OrderStrict, OrderPipelined} {
		config.Order = order
		s, c = planned(messages, config)
		if c.unsettled != 2 || c.deliveries[0].state != waiting || c.deliveries[3].state != waiting {
			t.Errorf("%s: %d unsettled", order, c.unsettled)
		}
		if ready := s.unsent(s.parts[0].ready); len(ready) != 2 {
			t.Errorf("%s: %d ready", order, len(ready))
		}
		if !errors.Is(c.results[2], sinks.ErrSkipped) || sinks.ScopeOf(c.results[1]) != sinks.ScopeMessage {
			t.Errorf("%s: results %v", order, c.results)
		}
	}
}
