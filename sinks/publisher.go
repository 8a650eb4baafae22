// Package sinks holds what the relay and its message brokers have in common:
// the Message, the Publisher that sends it, and the Error that says what a
// failure concerns. Each broker has a package of its own below this one, and
// sinktest is the contract that every Publisher passes on a real broker.
package sinks

import (
	"context"
	"time"
)

// Publisher sends messages to one broker. All methods may be called
// concurrently.
type Publisher interface {
	// Publish sends the messages and returns when each of them is resolved:
	// nil when the broker positively acknowledged every one of them, otherwise
	// one result per message, in the messages' order, nil for those that were
	// acknowledged.
	//
	// Messages of one destination and one equal, non-nil key (or in sequence, see
	// Message.InSequence) are appended in the order of the slice, and after a failure of one the rest of that
	// destination and key fail too, so that the acknowledged ones of a key are
	// always a prefix. Two concurrent calls have no mutual order: callers do
	// not have messages of one key in two calls at a time.
	//
	// A failure that concerns one message or one destination (see Scope) does
	// not fail innocent messages. Publish returns soon after ctx ends; what is
	// unresolved by then has failed, and may yet have reached the broker.
	// Publish does not retry for longer than the broker needs to elect a
	// leader or a connection needs to be made again: backing off is its
	// caller's part.
	Publish(ctx context.Context, messages []Message) []error
	// Ping reaches the broker, authenticates, and reports why it could not.
	Ping(ctx context.Context) error
	// Verify reports whether messages can be sent to the destination: nil, or
	// an Error with what is missing and the remedy. It creates nothing.
	Verify(ctx context.Context, destination Destination) error
	// Close releases connections and goroutines. Calls under way fail.
	Close() error
}

// Partitioner is a Publisher that can tell which part of a destination a
// message goes to, so that its caller can group messages by what fails together.
type Partitioner interface {
	// Partition returns the partition of m.Destination that Publish would send m
	// to now. It is not known for a message that may go to any (in Kafka one
	// without key, in sequence or not), and while the destination's layout is
	// unknown: before its first Publish, and once it was found missing.
	//
	// The answer can change between two calls, when the destination gets more
	// partitions; messages of one key have one partition at any moment. Partition
	// does no I/O, allocates nothing and may be called concurrently, also from
	// within Publish.
	Partition(m *Message) (partition int32, known bool)
	// Layouts returns a number that is another one when any answer of Partition may
	// be: all answers between two calls that return the same number agree. It may be
	// called as Partition may.
	Layouts() uint64
}

// Throttler is a Publisher whose broker can slow it down by a quota.
type Throttler interface {
	// Throttled returns for how long the brokers have wanted to be left alone, all
	// together, since the Publisher was made. Nothing fails meanwhile; messages
	// wait. It may be called concurrently.
	Throttled() time.Duration
}
