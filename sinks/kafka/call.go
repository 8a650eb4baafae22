package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

// lastMoment is how long before the end of its context a call's messages are not
// sent any more to a broker that throttles.
const lastMoment = time.Second

// call is one Publish under way. Lanes resolve its messages; Publish waits for
// all of them or for its context.
type call struct {
	messages []sinks.Message
	// began is when Publish was called, deadline when its context ends, zero for
	// never.
	began, deadline time.Time

	// memory is held for reading while a writer reads messages, and for writing
	// when Publish is about to return: from then on the messages are their
	// owner's again.
	memory sync.RWMutex

	mu sync.Mutex
	// ended: Publish has returned or is about to, nothing is to be changed.
	// Changed with memory and mu held, so that either suffices to read it.
	ended bool
	// results is nil as long as nothing has failed.
	results []error
	// resolved is the number of messages that are acknowledged or failed.
	resolved int
	// broken are the keys of which a message failed.
	broken map[orderKey]struct{}
	done   chan struct{}

	// anyFailed spares the writers mu as long as nothing has failed.
	anyFailed atomic.Bool
	// segments are all that were handed to writers.
	segments []*segment
}

// orderKey is what messages are ordered by.
type orderKey struct{ topic, key string }

// segment is the part of a call that goes to one partition.
type segment struct {
	call *call
	// indexes are the messages', ascending.
	indexes []int32
	// next is the position in indexes of the first message that is not resolved
	// yet. The writer changes it with call.mu held.
	next int
	// trouble is the latest error that the writer is waiting out.
	trouble atomic.Pointer[error]
}

func newCall(ctx context.Context, messages []sinks.Message) *call {
	c := &call{messages: messages, began: time.Now(), done: make(chan struct{})}
	c.deadline, _ = ctx.Deadline()
	return c
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
	c.mu.Lock()
	defer c.mu.Unlock()
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
			c.refuseLocked(err, i)
		}
	}
}

func (c *call) failLocked(err error, indexes []int32) {
	if c.ended {
		return
	}
	if c.results == nil {
		c.results = make([]error, len(c.messages))
		c.anyFailed.Store(true)
	}
	failed := 0
	for _, i := range indexes {
		if c.results[i] == nil {
			c.results[i] = err
			failed++
		}
	}
	c.resolve(failed)
}

// refuse fails one message and with it the rest of its key: the writer asks held
// before it sends any other.
func (c *call) refuse(err error, index int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuseLocked(err, index)
}

func (c *call) refuseLocked(err error, index int32) {
	if c.ended {
		return
	}
	m := &c.messages[index]
	if key, ordered := m.OrderedBy(); ordered {
		if c.broken == nil {
			c.broken = map[orderKey]struct{}{}
		}
		c.broken[orderKey{m.Destination, key}] = struct{}{}
	}
	c.failLocked(err, []int32{index})
}

// held reports whether message index is not to be sent, because it failed
// already, or because an earlier one of its key did: then it fails now.
func (c *call) held(index int32) bool {
	if !c.anyFailed.Load() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heldLocked(index)
}

func (c *call) heldLocked(index int32) bool {
	if c.ended || c.results != nil && c.results[index] != nil {
		return true
	}
	m := &c.messages[index]
	key, ordered := m.OrderedBy()
	if !ordered {
		return false
	}
	if _, broken := c.broken[orderKey{m.Destination, key}]; !broken {
		return false
	}
	c.failLocked(sinks.ErrSkipped, []int32{index})
	return true
}

// acknowledge resolves the first messages of the segment, up to position to, of
// which n had not failed.
func (s *segment) acknowledge(to, n int) {
	s.call.mu.Lock()
	defer s.call.mu.Unlock()
	s.next = to
	if !s.call.ended {
		s.call.resolve(n)
	}
}

// settled reports whether nothing of the segment is to be sent any more.
func (s *segment) settled() bool { return s.next == len(s.indexes) || !s.call.live() }

// skip passes messages that have all failed.
func (s *segment) skip(to int) { s.acknowledge(to, 0) }

// fail resolves all of the segment that is left.
func (s *segment) fail(err error) {
	s.call.mu.Lock()
	defer s.call.mu.Unlock()
	left := s.indexes[s.next:]
	s.next = len(s.indexes)
	s.call.failAll(err, left)
}

// resolve counts; mu is held.
func (c *call) resolve(n int) {
	c.resolved += n
	if n > 0 && c.resolved == len(c.messages) {
		close(c.done)
	}
}

// live reports whether somebody still waits for the call.
func (c *call) live() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.ended
}

// end takes the messages back from the writers and returns Publish's result. What
// is not resolved fails with what why makes of the trouble that its writer has, if
// any.
func (c *call) end(why func(trouble error) error) []error {
	c.memory.Lock()
	defer c.memory.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.resolved < len(c.messages) {
		dispatched := make([]bool, len(c.messages))
		for _, s := range c.segments {
			for _, i := range s.indexes {
				dispatched[i] = true
			}
			var trouble error
			if latest := s.trouble.Load(); latest != nil {
				trouble = *latest
			}
			c.failLocked(why(trouble), s.indexes[s.next:])
		}
		err := why(nil)
		for i := range c.messages {
			if !dispatched[i] {
				c.failLocked(err, []int32{int32(i)})
			}
		}
	}
	c.ended = true
	return c.results
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
