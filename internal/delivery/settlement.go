package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

// settle records what became of the messages, and says what changed.
func (p *pipeline) settle(ctx context.Context, d *delivery) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	now := time.Now()
	published := d.observe(p.Observer, func(m *sinks.Message) { p.Observer.Acknowledged(now.Sub(m.CreatedAt)) })
	reports := p.reports(ctx, d)
	began := time.Now()
	settling := d.trace.Settle()
	err := d.batch.Settle(ctx, d.outcomes())
	p.Observer.SettleTook(time.Since(began))
	settling.End(published.total(), err)

	unrecorded, ok := errors.AsType[*source.UnrecordedError](err)
	settled := err == nil || ok
	if !settled {
		p.unsettled(err, published.total())
	}
	for i := range reports {
		r := &reports[i]
		if unrecorded != nil && unrecorded.Kept[r.id] != nil {
			r.outcome.Verdict = source.Parked
			r.err = fmt.Errorf("%w; %w", r.err, unrecorded.Kept[r.id])
		}
		p.tell(r, settled, !unrecorded.Lost(r.id))
	}
	if !settled {
		return
	}
	for _, c := range published.counts {
		p.Observer.Published(c.topic, c.sink, c.n)
	}
	if unrecorded != nil {
		p.unrecorded(unrecorded, reports)
	}
}

// unsettled takes over that a batch could not be settled.
func (p *pipeline) unsettled(err error, published int) {
	p.Observer.Unsettled(published)
	unsettled, ok := errors.AsType[*source.UnsettledError](err)
	if !ok {
		unsettled = &source.UnsettledError{Rows: published, Others: source.Fails, Err: err}
	}
	p.marks.failed(unsettled)
}

// unrecorded makes refused messages wait in memory that could not be recorded.
func (p *pipeline) unrecorded(err *source.UnrecordedError, reports []report) {
	reports = slices.DeleteFunc(reports, func(r report) bool {
		return !err.Lost(r.id) || !r.changed() || r.outcome.Verdict == source.Published
	})
	if len(reports) == 0 && len(err.Kept) > 0 {
		return
	}
	p.Logger.Error("refused messages could not be recorded; their keys wait in this relay's memory and are tried again",
		"error", err, "remedy", source.Explain(err).Remedy)
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for i := range reports {
		r := &reports[i]
		p.breakers.open(time.Now(), scope{topic: r.topic, key: r.key, id: r.id, everything: p.TotalOrder}, r.outcome.Reason, p.Failures.Backoff)
	}
}
