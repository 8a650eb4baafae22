package consume

import (
	"context"
	"maps"
	"sync"
)

// pauses says of which sources no message may be begun.
type pauses struct {
	mu      sync.Mutex
	sources map[string]bool // "" is all of them
	news    chan struct{}
}

// Pause stops beginning messages: those of some sources, or without any, all.
// What runs goes on, and so does all that the broker expects.
func (r *Runner) Pause(sources ...string) { r.setPaused(true, sources) }

// Resume ends Pause, for the same sources. Without any it ends all pauses.
func (r *Runner) Resume(sources ...string) { r.setPaused(false, sources) }

// Paused are the paused sources; "" means all.
func (r *Runner) Paused() []string {
	r.pauses.mu.Lock()
	defer r.pauses.mu.Unlock()
	var names []string
	for source := range maps.Keys(r.pauses.sources) {
		names = append(names, source)
	}
	return names
}

func (r *Runner) setPaused(paused bool, sources []string) {
	p := &r.pauses
	p.mu.Lock()
	defer p.mu.Unlock()
	before := len(p.sources) > 0
	switch {
	case paused && len(sources) == 0:
		p.sources[""] = true
	case len(sources) == 0:
		clear(p.sources)
	}
	for _, source := range sources {
		if paused {
			p.sources[source] = true
		} else {
			delete(p.sources, source)
		}
	}
	close(p.news)
	p.news = make(chan struct{})
	if now := len(p.sources) > 0; now != before {
		r.Observer().Paused(r.config.Inbox.Consumer, now)
		if now {
			r.config.Logger.Info("paused")
		} else {
			r.config.Logger.Info("resumed")
		}
	}
}

// await returns when messages of the source may be begun. It is not ok when ctx
// has ended.
func (p *pauses) await(ctx context.Context, source string) (ok bool) {
	for {
		p.mu.Lock()
		paused, news := p.sources[""] || p.sources[source], p.news
		p.mu.Unlock()
		if !paused {
			return ctx.Err() == nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return false
		}
	}
}
