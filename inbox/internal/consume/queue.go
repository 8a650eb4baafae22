package consume

import (
	"container/heap"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/outboxrelay/relay/inbox"
)

// Item is a delivery on its way through a queue.
type Item struct {
	inbox.Message
	// Delivery is the consumer's own.
	Delivery any
	// Before is how often it is known to have failed elsewhere.
	Before int

	// failure is why it is to be put aside.
	failure *Failure
	stream  *stream
	number  int64
	// alone keeps it out of batches: it may be the one that fails them.
	alone bool
	// requeue says that it is to be given back to the broker.
	requeue bool
	// tried says that it was, settled that there is nothing left to do.
	tried, settled bool
	// outages, contentions and unplaced are how often in a row the database was
	// away, another transaction in the way, or it could not be put aside; away is
	// since when the database is.
	outages, contentions, unplaced int
	away                           time.Time
	// pause is how long it is to wait before its next try.
	pause time.Duration
}

// Queue is a partition, or a subscription to a RabbitMQ queue, as far as it is
// in this process: messages in the order of their arrival, and workers for them.
//
// With one worker there is one stream, and each message waits for all before it.
// With more, each key is a stream of its own, of which one worker at a time takes
// messages, and a message without a key is too. A stream whose first message has
// to wait, for its next try, occupies no worker.
type Queue struct {
	runner *Runner
	logger *slog.Logger
	// Acknowledge tells the broker that messages are settled. Requeue gives one
	// back to it instead of trying it again; nil where messages stay in place.
	// Halt ends the queue's context for a reason.
	Acknowledge func(items ...*Item)
	Requeue     func(item *Item)
	Halt        func(cause error)

	// unplaced is what is logged of messages that cannot be put aside.
	unplaced Trouble

	mu     sync.Mutex
	wake   *sync.Cond
	halted context.Context //nolint:containedctx // a queue is the scope of one
	number int64
	// streams are those with a key that have messages; sole is that of all
	// messages where there is one worker.
	streams map[string]*stream
	sole    stream
	// ready are streams with a message that may be processed, and no worker; idle
	// workers wait for one.
	ready []*stream
	idle  int
	// timers are those of streams that wait.
	timers map[*stream]*time.Timer
}

// stream is messages that wait for each other.
type stream struct {
	items []*Item
	// taken is how many of them, from the first one, a worker has.
	taken int
	// named says that it is in Queue.streams.
	named bool
}

// NewQueue makes a queue, which begins no further message when halted has ended.
func (r *Runner) NewQueue(halted context.Context, logger *slog.Logger) *Queue {
	q := &Queue{runner: r, logger: logger, halted: halted, streams: make(map[string]*stream), timers: make(map[*stream]*time.Timer)}
	q.wake = sync.NewCond(&q.mu)
	return q
}

// Add identifies a message and puts it at the end. What is added after the end of
// the queue's context is left to the broker.
func (q *Queue) Add(item *Item) {
	id, err := q.runner.identify(item.Message)
	if item.ID = id; err != nil {
		q.runner.failed(inbox.SourceOf(item.Message), inbox.WithoutID)
		item.failure = &Failure{Err: err}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.number++
	item.number = q.number
	item.stream = q.streamOf(item)
	item.stream.items = append(item.stream.items, item)
	if len(item.stream.items) == 1 {
		q.push(item.stream)
	}
}

func (q *Queue) streamOf(item *Item) *stream {
	switch {
	case q.runner.config.Concurrency == 1:
		return &q.sole
	case item.Key == nil:
		return &stream{}
	}
	s := q.streams[string(item.Key)]
	if s == nil {
		s = &stream{named: true}
		q.streams[string(item.Key)] = s
	}
	return s
}

// push makes a stream ready.
func (q *Queue) push(s *stream) {
	q.ready = append(q.ready, s)
	q.wake.Signal()
}

// Run processes messages until the queue's context has ended, and what runs has.
// When work ends that is interrupted.
func (q *Queue) Run(work context.Context) {
	stop := context.AfterFunc(q.halted, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.wake.Broadcast()
	})
	defer stop()
	var workers sync.WaitGroup
	for range q.runner.config.Concurrency {
		workers.Go(func() {
			for batch := q.take(); batch != nil; batch = q.take() {
				q.process(work, batch)
				q.release(batch)
			}
		})
	}
	workers.Wait()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, timer := range q.timers {
		timer.Stop()
	}
}

// take returns what to process next in one transaction, in the order of arrival,
// or nil when the queue's context has ended.
func (q *Queue) take() (batch []*Item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.ready) == 0 && q.halted.Err() == nil {
		q.idle++
		q.wake.Wait()
		q.idle--
	}
	if q.halted.Err() != nil {
		return nil
	}
	if first := q.ready[0]; !q.runner.config.batched() || !first.items[0].batchable() {
		q.ready[0] = nil
		q.ready = q.ready[1:]
		first.taken = 1
		return []*Item{first.items[0]}
	}
	// A share of the streams, so that other idle workers have something too.
	share := (len(q.ready) + q.idle) / (q.idle + 1)
	var chosen byArrival
	var left []*stream
	for _, s := range q.ready[:share] {
		if s.items[0].batchable() {
			chosen = append(chosen, s)
		} else {
			left = append(left, s)
		}
	}
	heap.Init(&chosen)
	for len(chosen) > 0 && len(batch) < q.runner.config.BatchSize {
		s := chosen[0]
		batch = append(batch, s.items[s.taken])
		if s.taken++; s.taken < len(s.items) && s.items[s.taken].batchable() {
			heap.Fix(&chosen, 0)
		} else {
			heap.Pop(&chosen)
		}
	}
	for _, s := range chosen {
		if s.taken == 0 {
			left = append(left, s)
		}
	}
	if q.ready = q.ready[share:]; len(left) > 0 {
		q.ready = append(left, q.ready...)
	}
	return batch
}

// byArrival is a heap of streams, the one with the oldest message that is not
// taken first.
type byArrival []*stream

func (b byArrival) Len() int { return len(b) }
func (b byArrival) Less(i, j int) bool {
	return b[i].items[b[i].taken].number < b[j].items[b[j].taken].number
}
func (b byArrival) Swap(i, j int) { b[i], b[j] = b[j], b[i] }

// Push implements heap.Interface; it is not used.
func (b *byArrival) Push(any) {}

// Pop implements heap.Interface.
func (b *byArrival) Pop() any {
	last := len(*b) - 1
	s := (*b)[last]
	*b = (*b)[:last]
	return s
}

// batchable reports whether the message may share a transaction.
func (i *Item) batchable() bool { return !i.alone && !i.requeue && i.failure == nil }

// release gives back what take returned.
func (q *Queue) release(batch []*Item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	// A batch is settled as a whole or not at all, so what is settled is the
	// beginning of its stream.
	for _, item := range batch {
		if item.settled {
			item.stream.items[0] = nil
			item.stream.items = item.stream.items[1:]
		}
	}
	for _, item := range batch {
		s := item.stream
		if s.taken == 0 {
			continue // it is done
		}
		s.taken = 0
		switch {
		case len(s.items) == 0:
			s.items = nil
			if s.named {
				delete(q.streams, string(item.Key))
			}
		case s.items[0].pause > 0 && q.halted.Err() == nil:
			pause := s.items[0].pause
			s.items[0].pause = 0
			q.timers[s] = time.AfterFunc(pause, func() {
				q.mu.Lock()
				defer q.mu.Unlock()
				delete(q.timers, s)
				q.push(s)
			})
		default:
			q.push(s)
		}
	}
}
