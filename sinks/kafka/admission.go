package kafka

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

// look is how often who waits for a broker that throttles looks whether somebody
// still waits for him.
const look = 250 * time.Millisecond

// admission is the right to send one request to a partition's leader.
type admission struct {
	leader int32
	// unled is why no broker leads the partition, nil if one does.
	unled error
	// muted is how long the broker had it waited for.
	muted time.Duration

	publisher *Publisher
	throttle  *throttle
	turn      *ticket
	held      bool
}

func (a *admission) released() bool { return !a.held }

// release lets others send. It may be called again.
func (a *admission) release() {
	if !a.held {
		return
	}
	a.held = false
	<-a.publisher.slots
	a.giveUpTurn()
}

func (a *admission) giveUpTurn() {
	if a.turn != nil {
		a.throttle.leave(a.turn)
		a.turn = nil
	}
}

// admit waits until a request may be sent, or until nothing is left to send. It
// fails when ctx ends. In doubt the writer has a batch that may have been appended,
// which is sent again for as long as somebody waits for it.
func (w *partitionWriter) admit(ctx context.Context, inDoubt bool) (admission, error) {
	a := admission{publisher: w.publisher}
	for {
		a.leader, a.unled = w.publisher.layouts.of(w.topic).leader(w.topic, w.partition)
		if a.unled == nil {
			began := time.Now()
			a.throttle = w.publisher.cluster.throttles.of(a.leader)
			w.await(ctx, &a, inDoubt)
			a.muted += time.Since(began)
		}
		select {
		case w.publisher.slots <- struct{}{}:
			a.held = true
		case <-ctx.Done():
			a.giveUpTurn()
			return a, ctx.Err()
		}
		if a.unled != nil || !w.publisher.cluster.throttles.pauses(a.leader) || w.idle() {
			return a, nil //nolint:nilerr // unled is the answer of whoever sends
		}
		a.release() // throttled meanwhile
	}
}

// await waits out the broker's pause. Calls that end before it fail now: what is
// not sent cannot be there twice.
func (w *partitionWriter) await(ctx context.Context, a *admission, inDoubt bool) {
	for ctx.Err() == nil {
		now := time.Now()
		pause, slow := a.throttle.state(now)
		if pause <= 0 && !slow {
			return
		}
		if !inDoubt {
			w.giveUp(now, max(pause, 0))
		}
		if w.idle() {
			return
		}
		if slow && a.turn == nil {
			a.turn = a.throttle.queue(w.oldest())
		}
		switch {
		case a.turn != nil && !a.turn.comes(ctx, look):
		case pause > 0:
			sleep(ctx, min(pause, look))
		default:
			return
		}
	}
}

// oldest returns when the first of the calls that wait began.
func (w *partitionWriter) oldest() time.Time {
	w.mu.Lock()
	queue := w.queue
	w.mu.Unlock()
	for _, s := range queue {
		if !s.settled() {
			return s.call.began
		}
	}
	return time.Now()
}

// idle reports whether nothing is left to send.
func (w *partitionWriter) idle() bool {
	w.mu.Lock()
	queue := w.queue
	w.mu.Unlock()
	return !slices.ContainsFunc(queue, func(s *segment) bool { return !s.settled() })
}

// giveUp fails what the broker's pause leaves no time for.
func (w *partitionWriter) giveUp(now time.Time, pause time.Duration) {
	w.mu.Lock()
	queue := w.queue
	w.mu.Unlock()
	var failure error
	for _, s := range queue {
		if s.settled() || !s.call.endsBefore(now.Add(pause)) {
			continue
		}
		if failure == nil {
			failure = &sinks.Error{Scope: sinks.ScopePartition, Reason: reasonThrottled,
				Err: fmt.Errorf("kafka topic %s, partition %d: not sent in time, since its leader throttles this client (for another %s): raise the quota (producer_byte_rate or request_percentage) of the client id or user",
					w.topic, w.partition, pause.Round(time.Millisecond))}
		}
		s.fail(failure)
	}
}
