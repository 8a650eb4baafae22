package inbox

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/inbox/internal/delivery"
	"github.com/outboxrelay/relay/internal/sqlstate"
)

// observation follows one call of Process and the like, for its span and for
// the Observer. It is for one goroutine.
type observation struct {
	inbox    *Inbox
	ctx      context.Context //nolint:containedctx // as long as the call
	messages []Message
	span     trace.Span
	began    time.Time
	retries  int
	// entered says that the handler was called in the last run, done that it
	// returned nil; handler is the time of all runs.
	entered, done, ran bool
	handler            time.Duration
}

// observe begins, and returns the context of the transaction and its handler,
// which has the span. The caller calls end. messages is not changed.
func (i *Inbox) observe(ctx context.Context, batch bool, messages ...Message) (context.Context, *observation) {
	o := &observation{inbox: i, messages: messages}
	if batch {
		ctx, o.span = i.startBatchSpan(ctx, messages)
	} else {
		ctx, o.span = i.startSpan(ctx, messages[0])
	}
	o.ctx = ctx
	if i.Observer != nil {
		o.began = time.Now()
		i.Observer.Began(i.Consumer, messages)
	}
	return ctx, o
}

// refused tells of a message that is not even tried: it has no id.
func (i *Inbox) refused(ctx context.Context, message Message) {
	if _, judged := delivery.From(ctx); i.Observer != nil && !judged {
		i.Observer.Failed(i.Consumer, SourceOf(message), WithoutID)
	}
}

// handle runs the handler.
func (o *observation) handle(run func() error) error {
	o.entered, o.done, o.ran = true, false, true
	if o.inbox.Observer != nil {
		began := time.Now()
		defer func() { o.handler += time.Since(began) }() // also when it panics
	}
	err := run()
	o.done = err == nil
	return err
}

// again tells that the transaction is run again.
func (o *observation) again() {
	o.retries++
	o.entered, o.done = false, false
	if o.inbox.Observer != nil {
		o.inbox.Observer.Retried(o.inbox.Consumer, SourceOf(o.messages[0]))
	}
}

// end is called when the transaction has ended, deferred: without an error and
// without results, or with an unprocessed message, the handler has panicked.
func (o *observation) end(err error, results ...Result) {
	var reason Reason
	if err != nil || len(results) == 0 || results[0] == Unprocessed {
		results = nil
		reason = o.reason(err)
	}
	o.endSpan(results, reason, err)
	observer := o.inbox.Observer
	if observer == nil {
		return
	}
	observer.Ended(Outcome{
		Consumer: o.inbox.Consumer, Messages: o.messages, Results: results,
		Took: time.Since(o.began), Handler: o.handler, HandlerRan: o.ran,
	})
	if _, judged := delivery.From(o.ctx); reason != "" && !judged {
		observer.Failed(o.inbox.Consumer, SourceOf(o.messages[0]), reason)
	}
}

// reason is why a transaction failed, as far as it shows here.
func (o *observation) reason(err error) Reason {
	switch {
	case err == nil, isPanic(err):
		return HandlerPanicked
	case errors.Is(o.ctx.Err(), context.DeadlineExceeded):
		return TimedOut
	case o.ctx.Err() != nil:
		return Interrupted
	case retriable(err), sqlstate.Of(err) == "55P03": // lock_not_available
		return Contention
	case !o.entered:
		return DatabaseFailed
	case o.done:
		return CommitFailed
	case errors.Is(err, context.DeadlineExceeded):
		return TimedOut
	}
	return HandlerFailed
}

// isPanic recognises what the consumers make of a panic.
func isPanic(err error) bool {
	_, ok := errors.AsType[*delivery.PanicError](err)
	return ok
}
