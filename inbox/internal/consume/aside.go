package consume

import (
	"context"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/parked"
)

// asideTimeout bounds one attempt to park a message.
const asideTimeout = 30 * time.Second

// Failure is what a message was given up for. Without attempts it has no id.
type Failure struct {
	Err      error
	Attempts int
}

// maxError keeps what a dead letter is larger by than the message small.
const maxError = 1000

// Text is the error as a dead letter's header has it: valid UTF-8, at most 1000
// bytes and an ellipsis.
func (f Failure) Text() string {
	text := strings.ToValidUTF8(f.Err.Error(), "\uFFFD")
	if len(text) <= maxError {
		return text
	}
	end := maxError
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}

// putAside parks or dead-letters a message, and acknowledges it only after that
// has succeeded.
func (q *Queue) putAside(work context.Context, item *Item) {
	r, consumer, source := q.runner, q.runner.config.Inbox.Consumer, inbox.SourceOf(item.Message)
	where, err := r.putAside(work, item)
	if err != nil {
		if work.Err() != nil {
			return
		}
		r.Observer().PutAsideFailed(consumer, source)
		q.unplaced.Begins(q.logger, "a message that cannot be processed could not be put aside: it is kept, and that is tried again", err,
			append(item.attributes(), "cause", item.failure.Err)...)
		item.unplaced++
		item.pause = r.config.Backoff.Pause(item.unplaced)
		return
	}
	q.unplaced.Over(q.logger, "messages can be put aside again")
	q.logger.Error("a message could not be processed and was put aside",
		append(item.attributes(), "now", where, "attempts", item.failure.Attempts, "error", item.failure.Err)...)
	r.counters.poisoned.Add(1)
	to := inbox.Parked
	if r.config.DeadLetter != nil {
		to = inbox.DeadLettered
	}
	r.Observer().PutAside(consumer, source, to)
	r.attempts.forget(item.ID)
	item.settled = true
	q.Acknowledge(item)
}

// putAside returns where the message is now, when it is safe there.
func (r *Runner) putAside(work context.Context, item *Item) (where string, err error) {
	if r.config.DeadLetter != nil {
		return r.config.DeadLetter(work, item, *item.failure)
	}
	ctx, cancel := context.WithTimeout(work, asideTimeout)
	defer cancel()
	return "parked", parked.Lot{Inbox: r.box}.Park(ctx, r.config.DB, item.Message, item.failure.Attempts, item.failure.Err)
}
