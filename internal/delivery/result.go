package delivery

import (
	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

// result is what became of one message: where it went, why it was not published, if so, and what
// the source is told.
type result struct {
	target  route.Target
	err     error
	outcome source.Outcome
}

// sink is the name of the message's sink, empty where no route leads to one.
func (r *result) sink() string {
	if r.target.Route == nil {
		return ""
	}
	return r.target.Route.Sink()
}

// fail notes why a message was not published.
func (d *delivery) fail(i int, err error) {
	d.results[i].err = err
	d.failed = true
}

// outcomes is what the source is told, nil when all were published.
func (d *delivery) outcomes() []source.Outcome {
	if !d.failed {
		return nil
	}
	outcomes := make([]source.Outcome, len(d.results))
	for i := range d.results {
		outcomes[i] = d.results[i].outcome
	}
	return outcomes
}

// tally counts messages by topic, sink and reason, so that an observer is called
// once for each.
type tally struct {
	counts []count
	index  map[counted]int
	last   int
}

type counted struct{ topic, sink, reason string }

type count struct {
	counted
	n int
}

func (t *tally) add(topic, sink, reason string) {
	of := counted{topic, sink, reason}
	if t.last < len(t.counts) && t.counts[t.last].counted == of { // neighbours are alike
		t.counts[t.last].n++
		return
	}
	i, ok := t.index[of]
	if !ok {
		if t.index == nil {
			t.index = map[counted]int{}
		}
		i = len(t.counts)
		t.index[of] = i
		t.counts = append(t.counts, count{counted: of})
	}
	t.counts[i].n++
	t.last = i
}

// total counts all messages.
func (t *tally) total() (n int) {
	for _, c := range t.counts {
		n += c.n
	}
	return n
}

// observe tells the observer of the answers, and returns what there is to tell
// when the batch is settled.
func (d *delivery) observe(to Observer, age func(*sinks.Message)) (published tally) {
	var failed tally
	messages := d.batch.Messages()
	for i := range messages {
		m, r := &messages[i], &d.results[i]
		switch {
		case r.err == nil:
			published.add(m.Topic, r.sink(), "")
			age(m)
		case sinks.ScopeOf(r.err) != sinks.ScopeSkipped:
			failed.add(m.Topic, r.sink(), sinks.ReasonOf(r.err))
		}
	}
	for _, c := range failed.counts {
		to.Failed(c.topic, c.sink, c.reason, c.n)
	}
	return published
}
