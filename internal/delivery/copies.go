package delivery

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

// The headers of a dead letter's copy, beside its own.
const (
	headerDeadReason   = "dead-letter-reason"
	headerDeadError    = "dead-letter-error"
	headerDeadAttempts = "dead-letter-attempts"
	headerDeadTopic    = "dead-letter-topic"
)

// maxCopyError bounds the error in a header, in bytes: RabbitMQ's headers have
// to fit into one frame.
const maxCopyError = 1000

// Copies say where a copy of each message is published that is moved to the
// dead letters, for those who would rather consume than ask the database.
type Copies struct {
	// Sink is its name; empty: no copies are published.
	Sink string
	// Exchange is RabbitMQ's; empty: the sink's own.
	Exchange string
	// Destination makes a message's destination of its topic, type and key.
	Destination func(topic, typ string, key []byte) string
	// Template is what it makes it of, where that has the key in it: keys are too
	// many to name spans by. Empty otherwise.
	Template string
}

// copyDead publishes a copy of each message that is about to become a dead
// letter. One whose copy nobody took is not moved now but tried again later,
// like a message that was refused; one whose copy was refused is moved without:
// the table has it.
func (p *pipeline) copyDead(ctx context.Context, d *delivery) {
	if p.Copies.Sink == "" || !d.failed {
		return
	}
	var copies []sinks.Message
	var of []*source.Outcome
	for i := range d.results {
		if o := &d.results[i].outcome; o.Verdict == source.Dead {
			copies = append(copies, p.deadCopy(&d.batch.Messages()[i], o))
			of = append(of, o)
		}
	}
	if len(copies) == 0 {
		return
	}
	sink := p.all[p.Copies.Sink]
	if !sink.passes() {
		for _, o := range of {
			p.postponeDeath(o, "the sink of its copy is away")
		}
		return
	}
	sending := d.trace.Send(sink.name, copies, func(int) string { return p.Copies.Template })
	results := sink.publisher.Publish(ctx, copies)
	sending.End(results)
	for n, err := range results {
		switch {
		case err == nil:
		case sinks.ScopeOf(err) == sinks.ScopeMessage:
			p.Logger.Warn("the copy of a dead letter was refused; it is in the table of dead letters alone",
				"topic", copies[n].Topic, "sink", sink.name, "id", copies[n].Sequence, "message_id", uuid(copies[n].ID), traceOf(&copies[n]).attr(),
				"destination", copies[n].Destination, "reason", sinks.ReasonOf(err), "error", err)
		default:
			p.postponeDeath(of[n], "its copy could not be published: "+err.Error())
		}
	}
}

// deadCopy is what is published of a dead letter.
func (p *pipeline) deadCopy(m *sinks.Message, o *source.Outcome) sinks.Message {
	c := *m
	c.Destination = p.Copies.Destination(m.Topic, m.Type, m.Key)
	c.Exchange = p.Copies.Exchange
	c.InSequence = false
	about := []sinks.Header{
		{Name: headerDeadReason, Value: o.Reason},
		{Name: headerDeadError, Value: strings.ToValidUTF8(o.Error[:min(len(o.Error), maxCopyError)], "")},
		{Name: headerDeadAttempts, Value: strconv.Itoa(o.Attempts)},
		{Name: headerDeadTopic, Value: m.Topic},
	}
	c.Headers = slices.DeleteFunc(slices.Clone(m.Headers), func(h sinks.Header) bool {
		return slices.ContainsFunc(about, func(a sinks.Header) bool { return a.Name == h.Name })
	})
	c.Headers = append(c.Headers, about...)
	return c
}

// postponeDeath lets a message wait that should have become a dead letter.
func (p *pipeline) postponeDeath(o *source.Outcome, why string) {
	o.Verdict, o.RetryIn = source.Retrying, p.Failures.Backoff.pause(o.Attempts)
	o.Error += "; it waits to become a dead letter, since " + why
}
