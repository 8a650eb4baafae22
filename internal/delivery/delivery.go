// Package delivery moves messages from a source through the routes to the
// sinks and settles them. It is the only place that backs off: a source or a
// sink that fails says so at once, and the pipeline decides who waits, for how long.
package delivery

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/internal/tracing"
	"github.com/outboxrelay/relay/sinks"
)

// delivery is one batch on its way: its messages by sink, and what becomes of them.
type delivery struct {
	batch    source.Batch
	requests []*request
	// results has one entry per message of the batch, and failed says that one has an error.
	results []result
	failed  bool
	// held: the batch is of messages that were held back.
	held bool
	// tried are the breakers that the batch tries.
	tried []*breaker
	// trace is nil where the batch is not traced.
	trace *tracing.Batch
}

// request is what goes to one sink.
type request struct {
	sink *sinkBreaker
	// openings is the breaker's when the batch was claimed.
	openings int
	messages []sinks.Message
	// indexes says which message of the batch each is; nil when it is all.
	indexes []int
}

// index is the place in the batch of a message of the request.
func (q *request) index(i int) int {
	if q.indexes == nil {
		return i
	}
	return q.indexes[i]
}

// newDelivery returns one for the batch, with the memory of an earlier one.
func (p *pipeline) newDelivery(c claimed) *delivery {
	d := p.deliveries.Get().(*delivery)
	n := len(c.batch.Messages())
	d.batch, d.held, d.tried = c.batch, c.held, c.tried
	d.results = slices.Grow(d.results, n)[:n]
	return d
}

// recycle keeps the memory of a delivery that has ended, and nothing of what was in it.
func (p *pipeline) recycle(d *delivery) {
	clear(d.results)
	clear(d.requests)
	*d = delivery{results: d.results[:0], requests: d.requests[:0]}
	p.deliveries.Put(d)
}

// route finds each message's destination and sorts the batch into requests.
func (p *pipeline) route(c claimed) *delivery {
	d := p.newDelivery(c)
	messages := c.batch.Messages()
	var only *sinkBreaker // while all go to one sink
	mixed := false
	for i := range messages {
		m := &messages[i]
		target, err := p.Routes.Resolve(m.Topic, m.Type, m.Key)
		d.results[i].target = target
		if err == nil {
			err = c.batch.Refused(i)
		}
		if err != nil {
			d.fail(i, err)
			mixed = true
			continue
		}
		m.Destination, m.Exchange, m.InSequence = target.Destination, target.Exchange, p.TotalOrder
		sink := p.all[target.Route.Sink()]
		mixed = mixed || (only != nil && only != sink)
		only = sink
	}
	if mixed {
		p.sort(d, messages)
	} else {
		d.requests = append(d.requests, &request{sink: only, messages: messages})
	}
	for _, q := range d.requests {
		q.openings = q.sink.begin()
	}
	return d
}

// sort makes a request per sink.
func (p *pipeline) sort(d *delivery, messages []sinks.Message) {
	bySink := map[string]*request{}
	unroutable := map[source.Key]bool{}
	for i := range messages {
		key := source.Key{Topic: messages[i].Topic, Key: string(messages[i].Key)}
		if p.TotalOrder {
			key = source.Key{}
		}
		keyed := messages[i].Key != nil || p.TotalOrder
		if d.results[i].err != nil {
			unroutable[key] = unroutable[key] || keyed
			continue
		}
		if keyed && unroutable[key] {
			d.fail(i, sinks.ErrSkipped)
			continue
		}
		name := d.results[i].sink()
		q, ok := bySink[name]
		if !ok {
			q = &request{sink: p.all[name]}
			bySink[name] = q
			d.requests = append(d.requests, q)
		}
		q.messages = append(q.messages, messages[i])
		q.indexes = append(q.indexes, i)
	}
}

// deliver publishes and settles.
func (p *pipeline) deliver(ctx context.Context, d *delivery) {
	defer p.recycle(d)
	publishing, cancel := context.WithTimeout(ctx, p.PublishTimeout)
	defer cancel()
	answers := make([][]error, len(d.requests))
	publish := func(i int, q *request) {
		began := time.Now()
		sending := d.sending(q)
		answers[i] = q.sink.publisher.Publish(publishing, q.messages)
		p.Observer.PublishTook(q.sink.name, time.Since(began))
		sending.End(answers[i])
	}
	var wait sync.WaitGroup
	for i, q := range d.requests[min(1, len(d.requests)):] {
		wait.Go(func() { publish(i+1, q) })
	}
	if len(d.requests) > 0 {
		publish(0, d.requests[0])
	}
	wait.Wait()
	for i, q := range d.requests {
		p.judge(d, q, answers[i], ctx.Err() != nil)
	}
	p.decide(d)
	p.copyDead(publishing, d)
	p.settle(context.WithoutCancel(ctx), d)
	p.tried(d)
}

// sending begins the trace of what goes to a sink.
func (d *delivery) sending(q *request) *tracing.Sending {
	if d.trace == nil {
		return nil
	}
	return d.trace.Send(q.sink.name, q.messages, func(i int) string {
		// A destination that is made of a key is one of too many to be a name.
		if made := d.results[q.index(i)].target.Route; made.DependsOnKey() {
			return made.Template()
		}
		return ""
	})
}

// judge takes a sink's answers over and tells its breaker, unless they are what
// they are because the relay stops.
func (p *pipeline) judge(d *delivery, q *request, answers []error, stopping bool) {
	var away error
	answered := answers == nil
	for i, err := range answers {
		if err == nil {
			answered = true
			continue
		}
		d.fail(q.index(i), err)
		switch sinks.ScopeOf(err) {
		case sinks.ScopeSink:
			away = err
		case sinks.ScopeDestination, sinks.ScopePartition, sinks.ScopeMessage:
			answered = true
		case sinks.ScopeSkipped:
		}
	}
	switch {
	case stopping:
	case away != nil:
		q.sink.failed(away, time.Now(), q.openings)
	case answered:
		q.sink.succeeded(time.Now(), q.openings)
	}
}
