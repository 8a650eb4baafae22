package delivery

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/internal/tracing"
	"github.com/outboxrelay/relay/sinks"
)

// notifyPause is how soon after a claim a notification may cause the next one
// when no batch is under way.
const notifyPause = time.Millisecond

// forever is longer than any wait of the loop.
const forever = time.Hour

// delivery is one batch on its way: its messages by sink, and their results.
type delivery struct {
	batch   source.Batch
	parcels []*parcel
	// results has one entry per message of the batch once there is a failure.
	results []error
	targets []route.Target
	// held: the batch is of messages that were held back.
	held bool
	// probes are the holds that the batch tries.
	probes []*hold
	// trace is nil where the batch is not traced.
	trace *tracing.Batch
}

// parcel is what goes to one sink.
type parcel struct {
	gate *gate
	// closings is the gate's when the batch was claimed.
	closings int
	messages []sinks.Message
	// indexes says which message of the batch each is; nil when it is all.
	indexes []int
}

// exclude returns what the next claim must leave, how long that holds, and
// whether there is anything to claim for.
func (l *Loop) exclude(now time.Time) (source.Exclusion, time.Duration, bool) {
	blocked := l.blocked()
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.holds.expire(now)
	wait := forever
	if !l.holds.nextExpiry.IsZero() {
		wait = max(l.holds.nextExpiry.Sub(now), 0)
	}
	if len(blocked) == len(l.gates) || (l.options.TotalOrder && len(blocked) > 0) || l.holds.all() {
		return source.Exclusion{}, wait, false
	}
	names := strings.Join(blocked, "\x00")
	if l.built.holds != l.holds.version || l.built.blocked != names {
		l.built.holds, l.built.blocked = l.holds.version, names
		l.exclusion = source.Exclusion{}
		if len(blocked) > 0 {
			for _, r := range l.options.Routes.Routes() {
				l.exclusion.Rules = append(l.exclusion.Rules, source.Rule{
					TopicPattern: r.TopicPattern(), TypePattern: r.TypePattern(), AnyType: r.AnyType(),
					HoldBack: slices.Contains(blocked, r.Sink()),
				})
			}
		}
		l.holds.exclude(&l.exclusion)
	}
	return l.exclusion, wait, true
}

// blocked names the sinks that nothing is claimed for, sorted.
func (l *Loop) blocked() []string {
	var names []string
	for name, g := range l.gates {
		if !g.passes() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// route finds each message's destination and sorts the batch into parcels.
func (l *Loop) route(batch source.Batch, held bool) *delivery {
	messages := batch.Messages()
	d := &delivery{batch: batch, targets: make([]route.Target, len(messages)), held: held}
	var only *gate // while all go to one sink
	mixed := false
	for i := range messages {
		m := &messages[i]
		target, err := l.options.Routes.Resolve(m.Topic, m.Type, m.Key)
		d.targets[i] = target
		if err == nil {
			err = batch.Refused(i)
		}
		if err != nil {
			d.fail(i, err)
			mixed = true
			continue
		}
		m.Destination, m.Exchange, m.InSequence = target.Destination, target.Exchange, l.options.TotalOrder
		g := l.gates[target.Route.Sink()]
		mixed = mixed || (only != nil && only != g)
		only = g
	}
	if !mixed {
		d.parcels = []*parcel{{gate: only, messages: messages}}
	} else {
		d.sort(l, messages)
	}
	for _, p := range d.parcels {
		p.closings = p.gate.begin()
	}
	l.probe(d)
	return d
}

// probe notes which holds the batch tries.
func (l *Loop) probe(d *delivery) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.holds.empty() {
		return
	}
	messages := d.batch.Messages()
	for i := range messages {
		if h := l.holds.begin(messages[i].Topic); h != nil {
			d.probes = append(d.probes, h)
		}
	}
}

// sort makes a parcel per sink.
func (d *delivery) sort(l *Loop, messages []sinks.Message) {
	bySink := map[string]*parcel{}
	unroutable := map[source.Key]bool{}
	for i := range messages {
		key := source.Key{Topic: messages[i].Topic, Key: string(messages[i].Key)}
		if l.options.TotalOrder {
			key = source.Key{}
		}
		keyed := messages[i].Key != nil || l.options.TotalOrder
		if d.result(i) != nil {
			unroutable[key] = unroutable[key] || keyed
			continue
		}
		if keyed && unroutable[key] {
			d.fail(i, sinks.ErrSkipped)
			continue
		}
		name := d.targets[i].Route.Sink()
		p, ok := bySink[name]
		if !ok {
			p = &parcel{gate: l.gates[name]}
			bySink[name] = p
			d.parcels = append(d.parcels, p)
		}
		p.messages = append(p.messages, messages[i])
		p.indexes = append(p.indexes, i)
	}
}

func (d *delivery) fail(i int, err error) {
	if d.results == nil {
		d.results = make([]error, len(d.batch.Messages()))
	}
	d.results[i] = err
}

func (d *delivery) result(i int) error {
	if d.results == nil {
		return nil
	}
	return d.results[i]
}

// deliver publishes and settles.
func (l *Loop) deliver(ctx context.Context, d *delivery) {
	publishing, cancel := context.WithTimeout(ctx, l.options.PublishTimeout)
	defer cancel()
	results := make([][]error, len(d.parcels))
	publish := func(i int, p *parcel) {
		began := time.Now()
		sending := d.sending(p)
		results[i] = p.gate.publisher.Publish(publishing, p.messages)
		l.options.Observer.PublishTook(p.gate.name, time.Since(began))
		sending.End(results[i])
	}
	var wait sync.WaitGroup
	for i, p := range d.parcels[min(1, len(d.parcels)):] {
		wait.Go(func() { publish(i+1, p) })
	}
	if len(d.parcels) > 0 {
		publish(0, d.parcels[0])
	}
	wait.Wait()
	for i, p := range d.parcels {
		l.judge(d, p, results[i], ctx.Err() != nil)
	}
	outcomes := l.decide(d)
	l.copyDead(publishing, d, outcomes)
	l.settle(context.WithoutCancel(ctx), d, outcomes)
}

// sending begins the trace of what goes to a sink.
func (d *delivery) sending(p *parcel) *tracing.Sending {
	if d.trace == nil {
		return nil
	}
	return d.trace.Send(p.gate.name, p.messages, func(i int) string {
		if p.indexes != nil {
			i = p.indexes[i]
		}
		// A destination that is made of a key is one of too many to be a name.
		if made := d.targets[i].Route; made.DependsOnKey() {
			return made.Template()
		}
		return ""
	})
}

// judge takes a sink's results over and tells its gate, unless they are what
// they are because the relay stops.
func (l *Loop) judge(d *delivery, p *parcel, results []error, stopping bool) {
	var away error
	answered := results == nil
	for i, err := range results {
		if err == nil {
			answered = true
			continue
		}
		index := i
		if p.indexes != nil {
			index = p.indexes[i]
		}
		d.fail(index, err)
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
		p.gate.failed(away, time.Now(), p.closings)
	case answered:
		p.gate.succeeded(time.Now(), p.closings)
	}
}

// oneDestination reports whether all rows of a topic go where this one goes, so
// that the topic waits as a whole.
func (l *Loop) oneDestination(target route.Target) bool {
	return !l.options.Routes.DependsOnType() && (target.Route == nil || !target.Route.DependsOnKey())
}
