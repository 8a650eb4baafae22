package scenario

import (
	"context"

	"github.com/outboxrelay/relay/outbox"
)

// Record is a message as it is in the broker.
type Record struct {
	MessageID outbox.UUID
	Topic     string
	Key       string
	// Keyed tells the key "" from none.
	Keyed bool
	// Sequence is the row's id, from the header message-sequence.
	Sequence int64
	Payload  []byte
	// Headers are all of them as text, by name.
	Headers map[string]string
	// Partition is Kafka's; 0 for a queue.
	Partition int
	// Where names its place for people.
	Where string
}

// Log is everything that a broker holds for one test.
type Log interface {
	// Sink is the relay's configuration of it: a value for sinks.NAME.
	Sink() Config
	// Topics are the outbox's topics that lead there.
	Topics() []string
	// Records reads what is there up to now and returns everything since the
	// beginning, in the broker's order within each partition or queue. When it
	// fails nothing is lost: call it again.
	Records(ctx context.Context) ([]Record, error)
}
