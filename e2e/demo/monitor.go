package demo

import (
	"context"
	"time"
)

const (
	sampleInterval = 250 * time.Millisecond
	// samplesPerSecond of them make a rate.
	samplesPerSecond = int(time.Second / sampleInterval)
	historySeconds   = 30
)

// sample is what was counted at one moment.
type sample struct {
	at                            time.Time
	committed, published, shipped int
}

// monitor counts, and shows what it counted, from time to time.
type monitor struct {
	view     *View
	ledger   ledger
	waybills waybills
	arrivals *Arrivals
	relays   *relays
	shippers *shippers
	title    string
	total    time.Duration
	started  time.Time

	samples []sample // of the last second
	shown   state
	second  time.Time // when the histories got their last value
}

// run shows the phase until ctx ends. It may be called again for the next one.
func (m *monitor) run(ctx context.Context, phase string) {
	ticker := time.NewTicker(sampleInterval)
	defer ticker.Stop()
	for {
		m.step(ctx, phase)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (m *monitor) step(ctx context.Context, phase string) {
	// A look that fails, as the tables are not there yet or ctx ended, shows
	// what the last one saw.
	if shipped, refused, err := m.waybills.counts(ctx); err == nil {
		m.shown.shipped, m.shown.refused = shipped, refused
	}
	if committed, rolledBack, err := m.ledger.counts(ctx); err == nil {
		_, published := m.arrivals.Count()
		m.shown.committed, m.shown.rolledBack, m.shown.published = committed, rolledBack, published
		m.add(sample{time.Now(), committed, published, m.shown.shipped})
	}
	m.shown.title, m.shown.phase = m.title, phase
	m.shown.elapsed, m.shown.total = time.Since(m.started), m.total
	m.shown.relays, m.shown.shippers = m.relays.status(), m.shippers.status()
	m.view.Show(m.shown)
}

// add works out the rates of the last second.
func (m *monitor) add(s sample) {
	m.samples = append(m.samples, s)
	if len(m.samples) > samplesPerSecond+1 {
		m.samples = m.samples[1:]
	}
	first := m.samples[0]
	seconds := s.at.Sub(first.at).Seconds()
	if seconds == 0 {
		return
	}
	m.shown.commitRate = int(float64(s.committed-first.committed) / seconds)
	m.shown.publishRate = int(float64(s.published-first.published) / seconds)
	m.shown.shipRate = int(float64(s.shipped-first.shipped) / seconds)
	if s.at.Sub(m.second) >= time.Second {
		m.second = s.at
		m.shown.commitHistory = remember(m.shown.commitHistory, m.shown.commitRate)
		m.shown.publishHistory = remember(m.shown.publishHistory, m.shown.publishRate)
		m.shown.shipHistory = remember(m.shown.shipHistory, m.shown.shipRate)
	}
}

func remember(history []int, n int) []int {
	history = append(history, n)
	return history[max(0, len(history)-historySeconds):]
}
