package consume

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/outboxrelay/relay/inbox"
)

// splitAfter is how often in a row a batch may meet contention before its
// messages are tried one by one, so that those go on that nobody is in the way
// of.
const splitAfter = 3

// maxContentionPause is how long a message waits for other transactions at most,
// so that it goes on soon after a lock is free.
const maxContentionPause = 2 * time.Second

// ErrDatabaseAway halts a queue whose messages have waited for the database for
// longer than Patience.
var ErrDatabaseAway = errors.New("the database is away for longer than the messages should wait here")

// process takes messages one step further: they are settled, or wait for their
// next step. Nothing is changed when the queue's context has ended meanwhile.
func (q *Queue) process(work context.Context, batch []*Item) {
	r, first := q.runner, batch[0]
	source := inbox.SourceOf(first.Message)
	if !r.pauses.await(q.halted, source) {
		return
	}
	switch {
	case first.failure != nil:
		q.putAside(work, first)
		return
	case first.requeue:
		r.retried(source)
		q.Requeue(first)
		first.settled = true
		return
	}
	probe, ok := r.breaker.admit(q.halted)
	if probe {
		defer r.breaker.probed()
	}
	if !ok {
		return
	}
	attempt := 0
	if len(batch) == 1 {
		attempt = r.attempts.of(first.ID) + 1
	}
	messages := make([]inbox.Message, len(batch))
	for n, item := range batch {
		messages[n] = item.Message
	}
	if first.tried {
		r.retried(source)
	}
	results, err := r.try(work, attempt, messages)
	if err == nil {
		q.settle(batch, results)
		return
	}
	fault := r.judge(work, err)
	for _, item := range batch {
		item.tried = true
		if fault != Database {
			item.outages, item.away = 0, time.Time{}
		}
		if fault != Contention {
			item.contentions = 0
		}
	}
	switch fault {
	case Interrupted:
	case Database:
		q.outage(batch)
	case Contention:
		for _, item := range batch {
			item.contentions++
			item.alone = item.alone || len(batch) > 1 && item.contentions >= splitAfter
			item.pause = min(r.config.Backoff.Pause(item.contentions), maxContentionPause)
		}
	case Message, Permanent:
		if len(batch) > 1 {
			q.logger.Warn("a batch failed: trying its messages one by one", "messages", len(batch), "error", err)
			for _, item := range batch {
				item.alone = true
			}
			return
		}
		q.failed(work, first, fault, err)
	}
}

// outage has messages wait for the database.
func (q *Queue) outage(batch []*Item) {
	for _, item := range batch {
		if item.away.IsZero() {
			item.away = time.Now()
		}
		item.outages++
		item.pause = q.runner.config.Backoff.Pause(item.outages)
	}
	if patience := q.runner.config.Patience; patience > 0 && time.Since(batch[0].away) > patience {
		q.Halt(ErrDatabaseAway)
	}
}

// failed decides what follows an attempt that counts.
func (q *Queue) failed(work context.Context, item *Item, fault Fault, err error) {
	r := q.runner
	r.counters.failed(err)
	attempts := r.attempts.add(item.ID, item.Before)
	last := fault == Permanent || attempts >= r.config.MaxAttempts
	// What the handler calls permanent says nothing of the other messages.
	if alike := signature(err); last && fault != Permanent && r.breaker.holds(alike) {
		item.pause = r.config.Backoff.Pause(1) // the breaker's own pauses are longer
		r.failing.begins(q.logger, "several messages in a row failed alike, so that the cause is hardly in them: they are kept, and one is tried from time to time",
			alike, err, item.attributes()...)
		return
	}
	if last {
		item.failure = &Failure{Err: err, Attempts: attempts}
		q.putAside(work, item)
		return
	}
	item.pause = cmp.Or(retryAfter(err), r.config.Backoff.Pause(attempts))
	item.requeue = q.Requeue != nil
	attributes := append(item.attributes(), "attempt", attempts, "of", r.config.MaxAttempts, "pause", item.pause, "error", err)
	if panicked, ok := errors.AsType[*PanicError](err); ok {
		attributes = append(attributes, "stack", string(panicked.Stack))
	}
	q.logger.Warn("processing a message failed", attributes...)
}

// attributes name the message in the log.
func (i *Item) attributes() []any {
	attributes := []any{"message_id", i.ID, "type", i.Type}
	if i.Source.HasOffset {
		attributes = append(attributes, "offset", i.Source.Offset)
	}
	return attributes
}

// settle acknowledges what was committed.
func (q *Queue) settle(batch []*Item, results []inbox.Result) {
	r := q.runner
	for n, item := range batch {
		r.counters.count(results[n])
		r.attempts.forget(item.ID)
		item.settled = true
	}
	if slices.ContainsFunc(results, inbox.Result.Ran) {
		r.breaker.succeeded()
		r.failing.Over(q.logger, "messages are processed again")
	}
	q.Acknowledge(batch...)
}
