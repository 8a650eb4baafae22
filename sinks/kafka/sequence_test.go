package kafka

import (
	"bytes"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

func TestNothingFollowsARefusedMessageInSequence(t *testing.T) {
	config := testConfig(t)
	config.MaxMessageBytes = 10_000
	publisher := open(t, config)
	topic := newTopic(t, 1)
	messages := make([]sinks.Message, 10)
	for i := range messages {
		messages[i] = sinks.Message{ID: [16]byte{byte(i)}, Sequence: int64(i), Destination: topic, InSequence: true, Payload: []byte(strconv.Itoa(i))}
		if i%2 == 0 {
			messages[i].Key = []byte(strconv.Itoa(i))
		}
	}
	messages[4].Payload = bytes.Repeat([]byte("x"), 20_000)
	results := publisher.Publish(t.Context(), messages)
	if results == nil {
		t.Fatal("a message that is too large was acknowledged")
	}
	for i, err := range results {
		switch {
		case i < 4 && err != nil:
			t.Errorf("message %d: %v", i, err)
		case i == 4 && sinks.ScopeOf(err) != sinks.ScopeMessage:
			t.Errorf("message %d: %v", i, err)
		case i > 4 && !errors.Is(err, sinks.ErrSkipped):
			t.Errorf("message %d: %v, want it skipped", i, err)
		}
	}
	if n := len(readTopic(t, topic, 4, 10*time.Second)); n != 4 {
		t.Errorf("the topic has %d messages, want 4", n)
	}
}
