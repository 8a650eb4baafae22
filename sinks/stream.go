package sinks

import "context"

// Streamer is a Publisher that also sends in streams. Its Publish is a stream of
// one batch, sent and waited for.
type Streamer interface {
	Publisher
	// Stream returns a new stream. It holds neither goroutine nor connection while
	// nothing is in flight, so that it needs no end; the Publisher's Close ends it.
	Stream(window Window) Stream
}

// Window bounds what a stream has in flight, from Send until the batch is answered.
// A zero bound is none. A batch larger than the window is sent while nothing else is
// in flight.
type Window struct {
	Messages int
	// Bytes bounds the sum of Message.Size.
	Bytes int
}

// Stream sends batches in order, and answers each of them later. It is for a source
// whose consecutive batches have keys in common, and which cannot be read again.
//
// What is said of one batch in Publisher.Publish holds for all batches of a stream as
// if they were one: messages of one destination and one equal, non-nil key (or in
// sequence) are appended in the order of sending, and those that are acknowledged are a
// prefix. Once a message failed, its key is broken: what was or is sent behind it, in the
// same batch and in later ones, fails too, with ErrSkipped, or with the same error where
// that concerns more than one message. It is not appended, unless it was in flight
// together with one whose fate is unknown (see Send), or with RabbitMQ's order
// pipelined; then it fails all the same. Other keys go on, and so do messages without
// key. The key is whole again for what is sent after Resume.
//
// Two streams, or a stream and Publish, have no mutual order: a caller does not have
// messages of one key in both at a time.
//
// Send and Resume are called by one goroutine at a time. Receipts may be used by any.
type Stream interface {
	// Send hands a batch over and returns without waiting for its answer. It blocks
	// while the window is full, and for the first batch to a topic until a broker has
	// described it or is known to be away.
	//
	// The batch and the memory of its messages are the stream's until the receipt is
	// done. That is the case when each message is resolved, and soon after ctx or the
	// Publisher ended: what is unresolved by then has failed, with ScopeSink or
	// narrower, and may yet have reached the broker. A batch for which there was no room
	// in time fails in the same way, and none of it is sent. Nothing is tried for longer
	// than in Publish.
	Send(ctx context.Context, messages []Message) Receipt
	// Resume declares that the caller knows that the keys of these messages are broken:
	// what is sent of them from now on is sent, and what was sent before still fails. A
	// key that is not broken is left alone. Of the messages only destination, key and
	// InSequence matter.
	Resume(messages []Message)
}

// Receipt is the answer to one batch, once it is done. Batches are done in no
// particular order: who needs that waits for the receipts one after the other.
type Receipt interface {
	// Done is closed when every message of the batch is resolved.
	Done() <-chan struct{}
	// Results waits until the receipt is done and returns what Publish does: nil, or one
	// result per message, nil for those that were acknowledged. ErrSkipped and other
	// errors say that a message may be sent again, in its order, after Resume.
	Results() []error
}
