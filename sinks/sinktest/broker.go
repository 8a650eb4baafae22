// Package sinktest is the contract of sinks.Publisher and sinks.Stream as tests, run by every
// sink against the real broker that it talks to.
//
//	func TestConformance(t *testing.T) {
//		sinktest.Run(t, broker{url: os.Getenv("RELAY_TEST_…")})
//	}
package sinktest

import (
	"testing"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

// Broker is what a sink's test tells the suite about its broker. All methods
// are called from the test's goroutine and fail the test themselves when
// something goes wrong.
type Broker interface {
	// Publisher returns a new Publisher in the plain style, with the mapping of
	// Received's fields as the sink documents it. The suite closes it.
	Publisher(t *testing.T) sinks.Streamer
	// NewDestination creates an empty topic or queue that nobody else uses,
	// with several partitions where the broker has such.
	NewDestination(t *testing.T) sinks.Destination
	// MissingDestination returns a destination that does not exist, so that
	// messages to it fail with sinks.ScopeDestination (for RabbitMQ that is a
	// missing exchange: an unroutable key concerns the message).
	MissingDestination(t *testing.T) sinks.Destination
	// Refuse changes a message into one that the broker, or the sink in its
	// place, refuses for good: too large, or with an invalid attribute. It must
	// leave destination and key alone.
	Refuse(message *sinks.Message)
	// Read waits until the destination holds at least n messages and returns
	// all that it holds, from its beginning, each partition in the broker's
	// order. Reading need not be repeatable: the suite reads a destination once.
	Read(t *testing.T, destination sinks.Destination, n int, timeout time.Duration) []Received
	// Traits says what the broker can represent.
	Traits() Traits
}

// Traits is what a broker can represent.
type Traits struct {
	// NullKey: a null key and an empty key arrive as different things.
	NullKey bool
	// NullPayload: a null payload and an empty payload arrive as different
	// things.
	NullPayload bool
}

// Received is a message as a consumer sees it, with the attributes of the plain
// style taken from wherever the broker carries them.
type Received struct {
	// Partition is 0 where the broker has no partitions.
	Partition int
	Key       []byte
	Payload   []byte
	// MessageID is the canonical text of the UUID.
	MessageID   string
	Type        string
	ContentType string
	Sequence    int64
	// CreatedAt is as precise as the broker can carry it: microseconds, or
	// whole seconds.
	CreatedAt time.Time
	// Headers are the user's and, when the message was replayed,
	// message-replayed. Others may be among them.
	Headers map[string]string
}

// patience bounds every wait for a broker that answers; a broken sink fails
// after it instead of hanging.
const patience = 60 * time.Second

// Run checks every guarantee of sinks.Publisher and sinks.Stream against the broker.
func Run(t *testing.T, broker Broker) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Broker)
	}{
		{"content arrives byte for byte", testContent},
		{"nothing to publish", testNothing},
		{"a replayed message says so", testReplayed},
		{"order by key within a call", testOrder},
		{"order by key across calls", testOrderAcrossCalls},
		{"concurrent calls", testConcurrentCalls},
		{"a refused message fails alone", testRefused},
		{"a refused message without key", testRefusedWithoutKey},
		{"a missing destination fails alone", testMissingDestination},
		{"cancelled before", testCancelledBefore},
		{"expired in the middle", testExpired},
		{"close in the middle", testCloseInTheMiddle},
		{"publish after close", testAfterClose},
		{"ping and verify", testPingVerify},
		{"memory is the caller's again", testMemory},
		{"close ends every goroutine", testGoroutines},
		{"a stream keeps the order by key", testStream},
		{"a stream bounds what is in flight", testStreamWindow},
		{"a refused message breaks its key in a stream", testStreamRefused},
		{"a missing destination in a stream", testStreamMissingDestination},
		{"batches of a stream expire", testStreamExpired},
		{"close in the middle of a stream", testStreamClose},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, broker) })
	}
}
