package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/internal/window"
)

// lastMoment is how long before the end of its context a call's messages are not
// sent any more to a broker that throttles.
const lastMoment = time.Second

// call is one batch of a stream under way. Writers resolve its messages, until all of
// them are or its context ends. It implements sinks.Receipt.
type call struct {
	stream   *stream
	ctx      context.Context
	messages []sinks.Message
	// first is the position of the first message in the stream.
	first int64
	// share is the call's part of the stream's window.
	share window.Share
	// began is when the call was sent, deadline when its context ends, zero for
	// never.
	began, deadline time.Time

	// memory is held for reading while a writer reads messages, and for writing
	// when the call ends before all of them are resolved: from then on they are their
	// owner's again.
	memory sync.RWMutex

	// The rest is guarded by the stream's mu.

	// ended: nothing is to be changed any more.
	ended atomic.Bool
	// results is nil as long as nothing has failed.
	results []error
	// resolved is the number of messages that are acknowledged or failed.
	resolved int
	// release lets go of ctx.
	release func() bool
	done    chan struct{}

	// anyFailed spares the writers mu as long as nothing has failed.
	anyFailed atomic.Bool
	// segments are all that were handed to writers.
	segments []*segment
}

// segment is the part of a call that goes to one partition.
type segment struct {
	call      *call
	partition int32
	// indexes are the messages', ascending.
	indexes []int32
	// next is the position in indexes of the first message that is not resolved
	// yet. The writer changes it with the stream's mu held.
	next int
	// trouble is the latest error that the writer is waiting out.
	trouble atomic.Pointer[error]
}

// Done implements sinks.Receipt.
func (c *call) Done() <-chan struct{} { return c.done }

// Results implements sinks.Receipt.
func (c *call) Results() []error {
	<-c.done
	return c.results
}

// endsBefore reports whether the call's context ends before a moment, or so soon
// after it that what is sent then would hardly be acknowledged in time.
func (c *call) endsBefore(moment time.Time) bool {
	if c.deadline.IsZero() {
		return false
	}
	return c.deadline.Add(-min(lastMoment, c.deadline.Sub(c.began)/10)).Before(moment)
}

// fail resolves messages with an error. Messages that are resolved stay as they
// are.
func (c *call) fail(err error, indexes ...int32) {
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	c.failAll(err, indexes)
}

// failAll is fail with mu held. Where the error is about each message, those
// behind the first of a key were not tried.
func (c *call) failAll(err error, indexes []int32) {
	if sinks.ScopeOf(err) != sinks.ScopeMessage {
		c.failLocked(err, indexes)
		return
	}
	for _, i := range indexes {
		if !c.heldLocked(i) {
			c.failLocked(err, []int32{i})
		}
	}
}

// failLocked resolves messages with an error, and breaks their keys: the writers ask
// held before they send what is behind.
func (c *call) failLocked(err error, indexes []int32) {
	if c.ended.Load() {
		return
	}
	failed := 0
	for _, i := range indexes {
		if c.results != nil && c.results[i] != nil {
			continue
		}
		c.note(err, i)
		failed++
		if key, ordered := keyOf(&c.messages[i]); ordered {
			c.stream.broken.add(key, c.position(i))
		}
	}
	c.resolve(failed)
}

// note records why a message is not acknowledged; mu is held.
func (c *call) note(err error, index int32) {
	if c.results == nil {
		c.results = make([]error, len(c.messages))
		c.anyFailed.Store(true)
	}
	c.results[index] = err
}

// position is where a message is in its stream.
func (c *call) position(index int32) int64 { return c.first + int64(index) }

// keyOf returns what a message is ordered by, and whether it is ordered at all.
func keyOf(m *sinks.Message) (orderKey, bool) {
	key, ordered := m.OrderedBy()
	return orderKey{m.Destination, key}, ordered
}

// held reports whether message index is not to be sent, because it failed
// already, or because an earlier one of its key did: then it fails now.
func (c *call) held(index int32) bool {
	if !c.anyFailed.Load() && !c.stream.broken.any.Load() {
		return false
	}
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	return c.heldLocked(index)
}

func (c *call) heldLocked(index int32) bool {
	if c.ended.Load() || c.results != nil && c.results[index] != nil {
		return true
	}
	if !c.behind(index) {
		return false
	}
	c.note(sinks.ErrSkipped, index)
	c.resolve(1)
	return true
}

// behind reports whether an earlier message of the key failed; mu is held.
func (c *call) behind(index int32) bool {
	key, ordered := keyOf(&c.messages[index])
	return ordered && c.stream.broken.behind(key, c.position(index))
}

// acknowledge resolves the first messages of the segment, up to position to, of
// which n had not failed.
func (s *segment) acknowledge(to, n int) {
	c := s.call
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	from := s.next
	s.next = to
	if c.ended.Load() {
		return
	}
	if c.stream.broken.any.Load() {
		s.cut(s.indexes[from:to])
	}
	c.resolve(n)
}

// cut has those fail that were acknowledged together with one before them whose call
// had given up: it may be sent again. In sequence they are in several partitions, which
// have no order among them.
func (s *segment) cut(indexes []int32) {
	c := s.call
	for _, i := range indexes {
		if !c.messages[i].InSequence && (c.results == nil || c.results[i] == nil) && c.behind(i) {
			c.note(sinks.ErrSkipped, i)
		}
	}
}

// settled reports whether nothing of the segment is to be sent any more.
func (s *segment) settled() bool { return s.next == len(s.indexes) || s.call.ended.Load() }

// skip passes messages that have all failed.
func (s *segment) skip(to int) {
	s.call.stream.mu.Lock()
	defer s.call.stream.mu.Unlock()
	s.next = to
}

// fail resolves all of the segment that is left.
func (s *segment) fail(err error) {
	s.call.stream.mu.Lock()
	defer s.call.stream.mu.Unlock()
	left := s.indexes[s.next:]
	s.next = len(s.indexes)
	s.call.failAll(err, left)
}

// resolve counts, and ends the call with its last message; mu is held.
func (c *call) resolve(n int) {
	c.resolved += n
	if n > 0 && c.resolved == len(c.messages) {
		c.stream.end(c)
	}
}

// expire ends the call when its context or the publisher has ended. It takes the
// messages back from the writers; what is not resolved fails, with the trouble that its
// writer has, if any.
func (c *call) expire() {
	c.memory.Lock()
	defer c.memory.Unlock()
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	if c.ended.Load() {
		return
	}
	dispatched := make([]bool, len(c.messages))
	for _, s := range c.segments {
		for _, i := range s.indexes {
			dispatched[i] = true
		}
		var trouble error
		if latest := s.trouble.Load(); latest != nil {
			trouble = *latest
		}
		c.failLocked(c.unresolved(trouble), s.indexes[s.next:])
	}
	err := c.unresolved(nil)
	for i := range c.messages {
		if !dispatched[i] {
			c.failLocked(err, []int32{int32(i)})
		}
	}
}

// unresolved is the error of messages whose call ends before they are resolved.
func (c *call) unresolved(trouble error) error {
	p := c.stream.publisher
	if p.ctx.Err() != nil {
		return closedError()
	}
	return unresolved(c.ctx.Err(), trouble, p.answered.Load() > c.began.UnixNano())
}

// unresolved is the error of messages that were not acknowledged before the
// context ended with the cause. It concerns whom their writer's trouble does.
// Without one there was no answer at all, which concerns everybody unless brokers
// answered others meanwhile.
func unresolved(cause, trouble error, answered bool) error {
	if trouble != nil {
		return &sinks.Error{Scope: sinks.ScopeOf(trouble), Reason: sinks.ReasonOf(trouble),
			Err: fmt.Errorf("not acknowledged in time: %w; the latest trouble: %w", cause, trouble)}
	}
	scope, reason := sinks.ScopeSink, "cancelled"
	if errors.Is(cause, context.DeadlineExceeded) {
		reason = reasonTimeout
		if answered {
			scope = sinks.ScopePartition
		}
	}
	return &sinks.Error{Scope: scope, Reason: reason, Err: fmt.Errorf("not acknowledged in time: %w", cause)}
}
