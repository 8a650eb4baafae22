package delivery

import (
	"time"

	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

// decide decides what becomes of each message, and opens and closes breakers.
func (p *pipeline) decide(d *delivery) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	now := time.Now()
	messages := d.batch.Messages()
	closing := !p.breakers.empty()
	for i := range messages {
		m, r := &messages[i], &d.results[i]
		if r.err == nil {
			r.outcome.Verdict = source.Published
			if closing {
				p.closed(m, p.breakers.published(now, m, r.target))
			}
			continue
		}
		switch sinks.ScopeOf(r.err) {
		case sinks.ScopeSkipped:
		case sinks.ScopeSink:
			r.outcome.RetryIn = p.Failures.Backoff.pause(d.batch.Failures(i).Attempts)
		case sinks.ScopeDestination, sinks.ScopePartition:
			r.outcome.RetryIn = p.open(now, m, r)
		case sinks.ScopeMessage:
			r.outcome = p.Failures.refused(r.target, d.batch.Failures(i).Attempts+1, r.err)
			if closing {
				p.closed(m, p.breakers.answered(now, m, r.target))
			}
		}
	}
}

// tried takes note that a batch has ended that may have tried breakers.
func (p *pipeline) tried(d *delivery) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.breakers.ended(time.Now(), d.tried, p.Failures.Backoff)
	if everything := p.breakers.everything; everything != nil {
		everything.trying = false
	}
}

// closed logs that a breaker closed, nil for none that is news.
func (p *pipeline) closed(m *sinks.Message, closed *breaker) {
	if closed != nil {
		p.Logger.Info("a destination takes messages again", "topic", m.Topic, "destination", closed.place.destination)
	}
}

// open opens the breaker of a destination or of a partition of it, or of the message's key where
// that is all that is known to wait, and returns for how long.
func (p *pipeline) open(now time.Time, m *sinks.Message, r *result) time.Duration {
	s := scope{topic: m.Topic, key: m.Key, id: m.Sequence, everything: p.TotalOrder}
	// Where types lead to different places, what waits is a key, so that it keeps its order.
	if !p.Routes.DependsOnType() {
		whole, part, divided := p.breakers.placesOf(m, r.target)
		switch {
		case sinks.ScopeOf(r.err) == sinks.ScopeDestination:
			s.place, s.hasPlace = whole, true
		case divided:
			s.place, s.hasPlace = part, true
		}
	}
	_, pause, news := p.breakers.open(now, s, sinks.ReasonOf(r.err), p.Failures.Backoff)
	if news {
		p.Logger.Warn("a destination takes nothing; what goes there waits, other messages go on",
			"topic", m.Topic, "destination", r.target.Destination, "concerns", sinks.ScopeOf(r.err).String(),
			"id", m.Sequence, "message_id", uuid(m.ID), traceOf(m).attr(), "retry_in", pause.Round(time.Millisecond).String(),
			"reason", sinks.ReasonOf(r.err), "error", r.err)
	}
	return pause
}
