package kafka

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/internal/window"
)

// stream implements sinks.Stream. Its calls go to the partition writers in the order of
// sending, and a writer has one batch under way, so that the order of a key needs no more
// than to know which keys are broken.
type stream struct {
	publisher *Publisher
	window    *window.Window

	mu sync.Mutex
	// next is the position of the next message: messages of a stream are numbered.
	next int64
	// calls are under way, the oldest first, which is.
	calls  []underWay
	broken brokenKeys
	// partitions are how many the topics had when they were last sent to.
	partitions map[string]int
}

// underWay is what is known of a call without holding its messages.
type underWay struct {
	first int64
	done  chan struct{}
}

func (u underWay) ended() bool {
	select {
	case <-u.done:
		return true
	default:
		return false
	}
}

// Stream implements sinks.Streamer.
func (p *Publisher) Stream(limit sinks.Window) sinks.Stream {
	return &stream{publisher: p, window: window.New(limit)}
}

// Send implements sinks.Stream.
func (s *stream) Send(ctx context.Context, messages []sinks.Message) sinks.Receipt {
	c := &call{stream: s, ctx: ctx, messages: messages, began: time.Now(), done: make(chan struct{})}
	c.deadline, _ = ctx.Deadline()
	if len(messages) == 0 {
		close(c.done)
		return c
	}
	share, outOfTime := s.window.Enter(ctx, messages)
	s.begin(c, share)
	if outOfTime != nil || ctx.Err() != nil || !s.publisher.enter() {
		c.expire()
		return c
	}
	defer s.publisher.running.Done()
	s.publisher.dispatch(ctx, c)
	if ctx.Err() != nil || s.publisher.ctx.Err() != nil {
		c.expire() // with what was not dispatched
	}
	return c
}

func (s *stream) begin(c *call, share window.Share) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.share = share
	c.first = s.next
	s.next += int64(len(c.messages))
	s.calls = append(s.calls, underWay{c.first, c.done})
	c.release = context.AfterFunc(c.ctx, c.expire)
}

// end ends a call whose messages are all resolved; mu is held.
func (s *stream) end(c *call) {
	c.ended.Store(true)
	c.release()
	close(c.done)
	c.share.Leave()
	head := 0
	for head < len(s.calls) && s.calls[head].ended() {
		head++
	}
	s.calls = slices.Delete(s.calls, 0, head)
	oldest := s.next
	if len(s.calls) > 0 {
		oldest = s.calls[0].first
	}
	s.broken.forget(oldest)
}

// Resume implements sinks.Stream.
func (s *stream) Resume(messages []sinks.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range messages {
		if key, ordered := keyOf(&messages[i]); ordered {
			s.broken.resume(key, s.next)
		}
	}
	if len(s.calls) == 0 {
		s.broken.forget(s.next)
	}
}

// keeps makes sure that a call's keys go to the partitions where those of the calls
// before go: once the topic has more partitions, it waits until these are resolved. It
// reports false when ctx or the publisher ended before that.
func (s *stream) keeps(ctx context.Context, c *call, topic string, partitions int) bool {
	s.mu.Lock()
	var before []underWay
	if known, ok := s.partitions[topic]; !ok || known != partitions {
		if s.partitions == nil {
			s.partitions = map[string]int{}
		}
		s.partitions[strings.Clone(topic)] = partitions
		if ok {
			before = slices.DeleteFunc(slices.Clone(s.calls), func(u underWay) bool { return u.first >= c.first })
		}
	}
	s.mu.Unlock()
	for _, earlier := range before {
		select {
		case <-earlier.done:
		case <-ctx.Done():
			return false
		case <-s.publisher.ctx.Done():
			return false
		}
	}
	return true
}
