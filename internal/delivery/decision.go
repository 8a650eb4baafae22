package delivery

import (
	"time"

	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

// decide returns what becomes of each message, nil when all were published, and
// makes what is held back in memory wait.
func (l *Loop) decide(d *delivery) []source.Outcome {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	var outcomes []source.Outcome
	if d.results != nil {
		outcomes = make([]source.Outcome, len(d.results))
	}
	now := time.Now()
	messages := d.batch.Messages()
	for i := range messages {
		m, err := &messages[i], d.result(i)
		if err == nil {
			l.published(m)
			if outcomes != nil {
				outcomes[i].Verdict = source.Published
			}
			continue
		}
		switch sinks.ScopeOf(err) {
		case sinks.ScopeSkipped:
		case sinks.ScopeSink:
			outcomes[i].RetryIn = l.options.Failures.Backoff.pause(d.batch.Failures(i).Attempts)
		case sinks.ScopeDestination, sinks.ScopePartition:
			outcomes[i].RetryIn = l.hold(now, d, i, err)
		case sinks.ScopeMessage:
			outcomes[i] = l.options.Failures.refused(d.targets[i], d.batch.Failures(i).Attempts+1, err)
		}
	}
	for _, h := range d.probes {
		l.holds.end(h)
	}
	return outcomes
}

// published forgets what is remembered in memory of a message that got through.
func (l *Loop) published(m *sinks.Message) {
	back := l.holds.published(m.Topic, m.Key, m.Sequence)
	if back == nil {
		return
	}
	l.options.Logger.Info("a destination takes messages again", "topic", m.Topic, "destination", back.place.destination)
}

// hold makes a destination, or the key of a message whose part of a destination
// takes nothing, wait in memory, and returns for how long.
func (l *Loop) hold(now time.Time, d *delivery, i int, err error) time.Duration {
	m, target := &d.batch.Messages()[i], d.targets[i]
	s := scope{topic: m.Topic, key: m.Key, id: m.Sequence, everything: l.options.TotalOrder}
	if sinks.ScopeOf(err) == sinks.ScopeDestination && l.oneDestination(target) {
		s.wholeTopic, s.place = true, place{topic: m.Topic}
		if target.Route != nil {
			s.place = place{sink: target.Route.Sink(), exchange: target.Exchange, destination: target.Destination}
		}
	}
	_, pause, news := l.holds.add(now, s, sinks.ReasonOf(err), l.options.Failures.Backoff)
	if news {
		l.options.Logger.Warn("a destination takes nothing; what goes there waits, other messages go on",
			"topic", m.Topic, "destination", target.Destination, "concerns", sinks.ScopeOf(err).String(),
			"id", m.Sequence, "message_id", uuid(m.ID), traceOf(m).attr(), "retry_in", pause.Round(time.Millisecond).String(), "reason", sinks.ReasonOf(err), "error", err)
	}
	return pause
}
