package delivery

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

// broker is a Publisher that follows a script: a real one cannot be made to
// refuse just this message, or to answer pings and take nothing.
type broker struct {
	mutex sync.Mutex
	// refuse, when set, decides about each message; an error makes the rest of
	// its key fail too, as the contract of Publisher says.
	refuse func(m sinks.Message) error
	// away, when set, is what Publish and Ping answer.
	away error
	// deaf, when set, is what Publish answers although Ping succeeds.
	deaf error
	// delay is how long a publish takes; it ends with its context.
	delay time.Duration

	accepted []int64
	attempts []attempt
	pings    []time.Time
	// deadline is how long the last publish was allowed to take.
	deadline time.Duration
}

// attempt is one call of Publish.
type attempt struct {
	at  time.Time
	ids []int64
}

func (b *broker) set(change func(b *broker)) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	change(b)
}

func (b *broker) got() []int64 {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return slices.Clone(b.accepted)
}

func (b *broker) tries() []attempt {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return slices.Clone(b.attempts)
}

// triesOf returns when a message was tried.
func (b *broker) triesOf(id int64) (times []time.Time) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	for _, a := range b.attempts {
		if slices.Contains(a.ids, id) {
			times = append(times, a.at)
		}
	}
	return times
}

// Publish implements sinks.Publisher.
func (b *broker) Publish(ctx context.Context, messages []sinks.Message) []error {
	b.mutex.Lock()
	a := attempt{at: time.Now()}
	for _, m := range messages {
		a.ids = append(a.ids, m.Sequence)
	}
	b.attempts = append(b.attempts, a)
	if deadline, ok := ctx.Deadline(); ok {
		b.deadline = time.Until(deadline)
	}
	delay := b.delay
	b.mutex.Unlock()
	if delay > 0 {
		select {
		case <-ctx.Done():
			return sameForAll(messages, ctx.Err())
		case <-time.After(delay):
		}
	}
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if err := errors.Join(b.away, b.deaf); err != nil {
		return sameForAll(messages, err)
	}
	results := make([]error, len(messages))
	failed := map[string]bool{}
	bad := false
	for i, m := range messages {
		place := m.Destination + "\x00" + string(m.Key)
		switch {
		case m.Key != nil && failed[place]:
			results[i] = sinks.ErrSkipped
		case b.refuse != nil:
			results[i] = b.refuse(m)
		}
		if results[i] == nil {
			b.accepted = append(b.accepted, m.Sequence)
			continue
		}
		failed[place], bad = true, true
	}
	if !bad {
		return nil
	}
	return results
}

func sameForAll(messages []sinks.Message, err error) []error {
	results := make([]error, len(messages))
	for i := range results {
		results[i] = err
	}
	return results
}

// Ping implements sinks.Publisher.
func (b *broker) Ping(context.Context) error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.pings = append(b.pings, time.Now())
	return b.away
}

// Verify implements sinks.Publisher.
func (b *broker) Verify(context.Context, sinks.Destination) error { return nil }

// Close implements sinks.Publisher.
func (b *broker) Close() error { return nil }

// The failures of each scope.
var (
	errConnection = &sinks.Error{Scope: sinks.ScopeSink, Reason: "connection", Err: errors.New("connection refused")}
	errNoLeader   = &sinks.Error{Scope: sinks.ScopeSink, Reason: "no_leader", Err: errors.New("no leader")}
	errNoTopic    = &sinks.Error{Scope: sinks.ScopeDestination, Reason: "unknown_topic", Err: errors.New("no such topic")}
	errTooLarge   = &sinks.Error{Scope: sinks.ScopeMessage, Permanent: true, Reason: "message_too_large", Err: errors.New("too large")}
)

// errRefused may get through another time, errNoReplicas is of a partition.
var (
	errRefused    = &sinks.Error{Scope: sinks.ScopeMessage, Reason: "refused", Err: errors.New("refused by a policy")}
	errNoReplicas = &sinks.Error{Scope: sinks.ScopePartition, Reason: "not_enough_replicas", Err: errors.New("not enough replicas")}
)

// refuseIDs refuses messages by id.
func refuseIDs(err error, ids ...int64) func(sinks.Message) error {
	return func(m sinks.Message) error {
		if slices.Contains(ids, m.Sequence) {
			return err
		}
		return nil
	}
}

// refuseTopic refuses all messages of a topic.
func refuseTopic(err error, topic string) func(sinks.Message) error {
	return func(m sinks.Message) error {
		if m.Topic == topic {
			return err
		}
		return nil
	}
}
