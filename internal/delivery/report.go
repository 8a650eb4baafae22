package delivery

import (
	"bytes"
	"context"
	"log/slog"
	"math/bits"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/internal/tracing"
	"github.com/outboxrelay/relay/sinks"
)

// traceID is the trace that a message's writer stored with it, zero where there
// is none.
type traceID trace.TraceID

// traceOf returns the trace of a message.
func traceOf(m *sinks.Message) traceID { return traceID(tracing.Stored(m).TraceID()) }

// attr is the trace as a log shows it; one that is not there is not shown.
func (t traceID) attr() slog.Attr {
	if !trace.TraceID(t).IsValid() {
		return slog.Attr{}
	}
	return slog.String("trace_id", trace.TraceID(t).String())
}

// report is what the log tells of one message: who it is and what became
// of it, and nothing of what is in it.
type report struct {
	topic, sink string
	id          int64
	message     uuid
	trace       traceID
	before      source.Failures
	outcome     source.Outcome
	err         error
	// key is for what the log does not show.
	key []byte
}

// changed reports whether the message's state is another than before: it was refused, or got through after it had been.
func (r *report) changed() bool {
	switch r.outcome.Verdict {
	case source.GivenBack:
		return false
	case source.Published:
		return r.before.Attempts > 0
	case source.Retrying, source.Parked, source.Dead, source.Dropped:
	}
	return true
}

// reports returns one report for each message that there is something to say of, since the
// messages are gone when they are settled: for each at debug, and otherwise for those whose state changed.
func (p *pipeline) reports(ctx context.Context, d *delivery) (reports []report) {
	all := p.Logger.Enabled(ctx, slog.LevelDebug)
	if !all && !d.failed && !d.held {
		return nil
	}
	messages := d.batch.Messages()
	for i := range messages {
		m, result := &messages[i], &d.results[i]
		r := report{
			topic: m.Topic, sink: result.sink(), id: m.Sequence, message: uuid(m.ID),
			before: d.batch.Failures(i), outcome: result.outcome, err: result.err,
		}
		if changed := r.changed(); all || changed {
			r.trace = traceOf(m)
			if changed {
				r.key = bytes.Clone(m.Key)
			}
			reports = append(reports, r)
		}
	}
	return reports
}

// tell logs a report as far as it was settled.
func (p *pipeline) tell(r *report, settled, recorded bool) {
	if p.Logger.Enabled(context.Background(), slog.LevelDebug) {
		about := r.who()
		if r.err != nil {
			about = append(about, slog.String("reason", sinks.ReasonOf(r.err)), slog.String("concerns", sinks.ScopeOf(r.err).String()))
		}
		if r.outcome.Attempts > 0 {
			about = append(about, slog.Int("attempts", r.outcome.Attempts))
		}
		p.Logger.LogAttrs(context.Background(), slog.LevelDebug, r.event(settled, recorded), about...)
	}
	if settled && recorded && r.changed() {
		p.tellChange(r)
	}
}

// who says which message it is.
func (r *report) who() []slog.Attr {
	return []slog.Attr{
		slog.String("topic", r.topic), slog.String("sink", r.sink), slog.Int64("id", r.id),
		slog.Any("message_id", r.message), r.trace.attr(),
	}
}

// event says in words what became of a message.
func (r *report) event(settled, recorded bool) string {
	verdict := r.outcome.Verdict
	switch {
	case verdict == source.Published && !settled:
		return "message published, but not marked"
	case verdict == source.Published:
		return "message published"
	case !settled || !recorded:
		return "message not published"
	}
	switch verdict {
	case source.Retrying:
		return "message refused"
	case source.Parked:
		return "message parked"
	case source.Dead:
		return "message moved to the dead letters"
	case source.Dropped:
		return "message skipped and deleted"
	case source.GivenBack, source.Published:
	}
	return "message not published"
}

// tellChange logs a change of a message's state: each, and in between
// the 1st, 2nd, 4th, 8th … attempt.
func (p *pipeline) tellChange(r *report) {
	o := &r.outcome
	tell := func(level slog.Level, message string, retry bool) {
		about := append(r.who(), slog.Int("attempts", o.Attempts), slog.String("reason", o.Reason), slog.Any("error", r.err))
		if retry {
			about = append(about, slog.String("retry_in", o.RetryIn.Round(time.Millisecond).String()))
		}
		p.Logger.LogAttrs(context.Background(), level, message, about...)
	}
	again := bits.OnesCount(uint(max(o.Attempts, 0))) == 1
	switch o.Verdict {
	case source.Published:
		p.Logger.LogAttrs(context.Background(), slog.LevelInfo, "a message that had been refused was published; its key goes on",
			append(r.who(), slog.Int("attempts", r.before.Attempts+1))...)
	case source.Dead:
		p.Observer.GivenUp(r.topic, string(DeadLetter))
		tell(slog.LevelWarn, "a message was moved to the dead letters; its key goes on", false)
	case source.Dropped:
		p.Observer.GivenUp(r.topic, string(Skip))
		tell(slog.LevelWarn, "a message was skipped and deleted; its key goes on", false)
	case source.Parked:
		if !r.before.Parked {
			tell(slog.LevelWarn, "a message is parked; its key waits until it gets through or an operator decides, others go on", true)
		} else if again {
			tell(slog.LevelWarn, "a parked message was refused again; its key waits, others go on", true)
		}
	case source.Retrying:
		if again {
			tell(slog.LevelWarn, "a message was refused; its key waits, others go on", true)
		}
	case source.GivenBack:
	}
}
