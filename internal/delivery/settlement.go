package delivery

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/bits"
	"time"

	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

// settle records the outcomes, and says what changed.
func (l *Loop) settle(ctx context.Context, d *delivery, outcomes []source.Outcome) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	published := l.observe(d)
	changes := l.changes(d, outcomes) // the messages are gone when they are settled
	lines := l.lines(ctx, d, outcomes)
	began := time.Now()
	settling := d.trace.Settle()
	err := d.batch.Settle(ctx, outcomes)
	l.options.Observer.SettleTook(time.Since(began))
	settling.End(published.total(), err)
	unrecorded, ok := errors.AsType[*source.UnrecordedError](err)
	if err != nil && !ok {
		l.options.Observer.Unsettled(published.total())
		l.options.Logger.Warn("published messages could not be marked; they will be sent again", "error", err)
		l.tellEach(lines, false, false)
		return
	}
	l.tellEach(lines, true, unrecorded == nil)
	for _, c := range published.counts {
		l.options.Observer.Published(c.topic, c.sink, c.n)
	}
	if unrecorded != nil {
		l.unrecorded(unrecorded, changes)
		return
	}
	for i := range changes {
		l.tell(&changes[i])
	}
}

// observe tells the observer of the answers, and returns what there is to tell
// when the batch is settled.
func (l *Loop) observe(d *delivery) (published tally) {
	var failed tally
	now := time.Now()
	messages := d.batch.Messages()
	for i := range messages {
		m, sink := &messages[i], d.sink(i)
		switch err := d.result(i); {
		case err == nil:
			published.add(m.Topic, sink, "")
			l.options.Observer.Acknowledged(now.Sub(m.CreatedAt))
		case sinks.ScopeOf(err) != sinks.ScopeSkipped:
			failed.add(m.Topic, sink, sinks.ReasonOf(err))
		}
	}
	for _, c := range failed.counts {
		l.options.Observer.Failed(c.topic, c.sink, c.reason, c.n)
	}
	return published
}

// change is what is to be said of one message.
type change struct {
	topic   string
	sink    string
	key     []byte
	id      int64
	message uuid
	trace   traceID
	before  source.Failures
	outcome source.Outcome
	err     error
}

// changes lists the messages that were refused, and those that got through after
// they had been.
func (l *Loop) changes(d *delivery, outcomes []source.Outcome) (changes []change) {
	if outcomes == nil && !d.held {
		return nil
	}
	messages := d.batch.Messages()
	for i := range messages {
		m := &messages[i]
		c := change{
			topic: m.Topic, sink: d.sink(i), id: m.Sequence, message: uuid(m.ID), trace: traceOf(m),
			before: d.batch.Failures(i), outcome: source.Outcome{Verdict: source.Published}, err: d.result(i),
		}
		if outcomes != nil {
			c.outcome = outcomes[i]
		}
		if c.outcome.Verdict == source.GivenBack || c.outcome.Verdict == source.Published && c.before.Attempts == 0 {
			continue
		}
		c.key = bytes.Clone(m.Key)
		changes = append(changes, c)
	}
	return changes
}

// tell logs what became of a message: each change of its state, and in between
// the 1st, 2nd, 4th, 8th … attempt.
func (l *Loop) tell(c *change) {
	about := []any{
		"topic", c.topic, "sink", c.sink, "id", c.id, "message_id", c.message, c.trace.attr(), "attempts", c.outcome.Attempts,
		"reason", c.outcome.Reason, "error", c.err,
	}
	tell := func(level slog.Level, message string, more ...any) {
		l.options.Logger.Log(context.Background(), level, message, append(about, more...)...)
	}
	again := bits.OnesCount(uint(max(c.outcome.Attempts, 0))) == 1
	retry := []any{"retry_in", c.outcome.RetryIn.Round(time.Millisecond).String()}
	switch c.outcome.Verdict {
	case source.Published:
		l.options.Logger.Info("a message that had been refused was published; its key goes on",
			"topic", c.topic, "sink", c.sink, "id", c.id, "message_id", c.message, c.trace.attr(), "attempts", c.before.Attempts+1)
	case source.Dead:
		l.options.Observer.GivenUp(c.topic, string(DeadLetter))
		tell(slog.LevelWarn, "a message was moved to the dead letters; its key goes on")
	case source.Dropped:
		l.options.Observer.GivenUp(c.topic, string(Skip))
		tell(slog.LevelWarn, "a message was skipped and deleted; its key goes on")
	case source.Parked:
		if !c.before.Parked {
			tell(slog.LevelWarn, "a message is parked; its key waits until it gets through or an operator decides, others go on", retry...)
		} else if again {
			tell(slog.LevelWarn, "a parked message was refused again; its key waits, others go on", retry...)
		}
	case source.Retrying:
		if again {
			tell(slog.LevelWarn, "a message was refused; its key waits, others go on", retry...)
		}
	case source.GivenBack:
	}
}

// unrecorded makes refused messages wait in memory that could not be recorded.
func (l *Loop) unrecorded(err error, changes []change) {
	l.options.Logger.Error("refused messages could not be recorded; their keys wait in this relay's memory and are tried again",
		"error", err, "remedy", source.Explain(err).Remedy)
	l.mutex.Lock()
	defer l.mutex.Unlock()
	for _, c := range changes {
		if c.outcome.Verdict != source.Published {
			l.holds.add(time.Now(), scope{topic: c.topic, key: c.key, id: c.id, everything: l.options.TotalOrder}, c.outcome.Reason, l.options.Failures.Backoff)
		}
	}
}
