package rabbitmq

import (
	"slices"
	"testing"

	"github.com/outboxrelay/relay/sinks"
)

func TestOnlyTheFirstOfASequenceIsReady(t *testing.T) {
	message := func(key string, inSequence bool) sinks.Message {
		m := sinks.Message{Destination: "queue", ContentType: "text/plain", InSequence: inSequence}
		if key != "" {
			m.Key = []byte(key)
		}
		return m
	}
	for name, test := range map[string]struct {
		messages []sinks.Message
		ready    []int32
	}{
		"by key":      {[]sinks.Message{message("a", false), message("b", false), message("a", false), message("", false)}, []int32{0, 1, 3}},
		"in sequence": {[]sinks.Message{message("a", true), message("b", true), message("a", true), message("", true)}, []int32{0}},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := planned(test.messages, Config{Order: OrderStrict})
			var got []int32
			for _, d := range s.parts[0].ready {
				got = append(got, d.index)
			}
			if !slices.Equal(got, test.ready) {
				t.Errorf("ready are %v, want %v", got, test.ready)
			}
		})
	}
}
