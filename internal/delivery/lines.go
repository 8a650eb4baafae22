package delivery

import (
	"context"
	"log/slog"

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

// sink is the name of the sink of message i, empty where no route leads to one.
func (d *delivery) sink(i int) string {
	if d.targets[i].Route == nil {
		return ""
	}
	return d.targets[i].Route.Sink()
}

// line is what the log tells at debug of one message: who it is and what became
// of it, and nothing of what is in it.
type line struct {
	topic, sink string
	id          int64
	message     uuid
	trace       traceID
	outcome     source.Outcome
	err         error
}

// lines returns one line for each message, none where nobody reads them.
func (l *Loop) lines(ctx context.Context, d *delivery, outcomes []source.Outcome) []line {
	if !l.options.Logger.Enabled(ctx, slog.LevelDebug) {
		return nil
	}
	messages := d.batch.Messages()
	lines := make([]line, len(messages))
	for i := range messages {
		m := &messages[i]
		lines[i] = line{
			topic: m.Topic, sink: d.sink(i), id: m.Sequence, message: uuid(m.ID), trace: traceOf(m),
			outcome: source.Outcome{Verdict: source.Published}, err: d.result(i),
		}
		if outcomes != nil {
			lines[i].outcome = outcomes[i]
		}
	}
	return lines
}

// tellEach logs what became of each message of a batch, as far as it was settled.
func (l *Loop) tellEach(lines []line, settled, recorded bool) {
	for i := range lines {
		l.tellLine(lines[i].event(settled, recorded), &lines[i])
	}
}

// event says in words what became of a message.
func (l *line) event(settled, recorded bool) string {
	verdict := l.outcome.Verdict
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

func (l *Loop) tellLine(message string, of *line) {
	about := []slog.Attr{
		slog.String("topic", of.topic), slog.String("sink", of.sink), slog.Int64("id", of.id),
		slog.Any("message_id", of.message), of.trace.attr(),
	}
	if of.err != nil {
		about = append(about, slog.String("reason", sinks.ReasonOf(of.err)), slog.String("concerns", sinks.ScopeOf(of.err).String()))
	}
	if of.outcome.Attempts > 0 {
		about = append(about, slog.Int("attempts", of.outcome.Attempts))
	}
	l.options.Logger.LogAttrs(context.Background(), slog.LevelDebug, message, about...)
}
