package kafka

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// A broker whose client is over a quota (producer_byte_rate, request_percentage)
// appends a batch, answers at once with throttle_time_ms, and reads nothing more
// from the connection until that has passed. Who goes on sending meanwhile waits in
// vain, hangs up in the end, and has his batch appended late.

const (
	// longThrottle makes requests to a broker go one at a time: together they
	// would be over the quota by many batches, and the pause as long.
	longThrottle = 250 * time.Millisecond
	// calm is how long a broker must not throttle before requests go side by side
	// again.
	calm = 10 * time.Second
	// saidFor is how long nothing more is logged of a throttle.
	saidFor = 5 * time.Minute
)

// throttles are the brokers that throttle this client.
type throttles struct {
	logger *slog.Logger

	mu sync.Mutex
	// total is how long brokers wanted to be left alone, all together.
	total   time.Duration
	last    time.Time
	brokers map[int32]*throttle
}

// of returns the broker's throttle.
func (t *throttles) of(broker int32) *throttle {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.brokers[broker]
	if b == nil {
		b = &throttle{}
		if t.brokers == nil {
			t.brokers = map[int32]*throttle{}
		}
		t.brokers[broker] = b
	}
	return b
}

// note tells that a broker wants to be left alone for a while.
func (t *throttles) note(broker int32, pause time.Duration) {
	if pause <= 0 {
		return
	}
	now := time.Now()
	added := t.of(broker).hold(now, pause)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last.IsZero() || now.Sub(t.last) > saidFor {
		t.logger.Warn("kafka: the broker throttles this client, which is over a quota; sending waits as long as the broker says, and nothing is lost: raise the quota (producer_byte_rate or request_percentage) of the client id or user",
			"broker", broker, "throttle_time", pause.String())
	}
	t.last = now
	t.total += added
}

func (t *throttles) sum() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.total
}

// throttle holds requests to one broker back.
type throttle struct {
	mu sync.Mutex
	// until is when the next request may go; slow is until when they go one at a
	// time.
	until, slow time.Time
	// busy: a request has its turn; line waits for it.
	busy bool
	line []*ticket
}

// ticket is a place in the line; granted is closed when it is its turn.
type ticket struct {
	// since is when the oldest call that waits for it began.
	since   time.Time
	granted chan struct{}
}

// hold holds the next request back for the pause, and returns by how much that is
// longer than before.
func (t *throttle) hold(now time.Time, pause time.Duration) (added time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if pause >= longThrottle || now.Before(t.slow) {
		t.slow = now.Add(pause + calm)
	}
	from := now
	if t.until.After(now) {
		from = t.until
	}
	until := now.Add(pause)
	if !until.After(from) {
		return 0
	}
	t.until = until
	return until.Sub(from)
}

// state returns how long the pause lasts, and whether requests go one at a time.
func (t *throttle) state(now time.Time) (pause time.Duration, slow bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.until.Sub(now), now.Before(t.slow)
}

// pauses reports whether the broker wants to be left alone.
func (t *throttles) pauses(broker int32) bool {
	pause, _ := t.of(broker).state(time.Now())
	return pause > 0
}

// comes waits for the turn, for less when ctx ends, and reports whether it came.
func (t *ticket) comes(ctx context.Context, patience time.Duration) bool {
	select {
	case <-t.granted:
		return true
	default:
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-t.granted:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// queue takes a place in the line, in which the oldest call comes first: partitions
// have more or less to send, and a call waits for the last of them.
func (t *throttle) queue(since time.Time) *ticket {
	t.mu.Lock()
	defer t.mu.Unlock()
	mine := &ticket{since: since, granted: make(chan struct{})}
	if t.busy {
		t.line = append(t.line, mine)
	} else {
		t.busy = true
		close(mine.granted)
	}
	return mine
}

// leave gives the place or the turn up.
func (t *throttle) leave(mine *ticket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at := slices.Index(t.line, mine); at >= 0 {
		t.line = slices.Delete(t.line, at, at+1)
		return
	}
	if len(t.line) == 0 {
		t.busy = false
		return
	}
	oldest := 0
	for i, other := range t.line {
		if other.since.Before(t.line[oldest].since) {
			oldest = i
		}
	}
	close(t.line[oldest].granted)
	t.line = slices.Delete(t.line, oldest, oldest+1)
}
