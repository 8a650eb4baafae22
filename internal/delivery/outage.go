package delivery

import (
	"log/slog"
	"sync"
	"time"

	"github.com/outboxrelay/relay/internal/source"
)

// outage is the state of the database as pipelines see it: it logs each change
// once, whoever sees it first. It is safe for concurrent use.
type outage struct {
	backoff Backoff
	logger  *slog.Logger
	// what cannot be read.
	what string

	mutex sync.Mutex
	// failing are the pipelines whose last claim failed.
	failing  map[*pipeline]bool
	attempts int
	problem  string
	since    time.Time
}

// failed takes over that a claim failed, for the n-th time in a row, and returns the pause before the next attempt.
func (o *outage) failed(p *pipeline, err error, n int) time.Duration {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if len(o.failing) == 0 {
		o.since, o.attempts = time.Now(), 0
		o.failing = map[*pipeline]bool{}
	}
	o.failing[p] = true
	o.attempts++
	problem := source.Explain(err)
	if problem.Kind != o.problem {
		o.problem = problem.Kind
		o.logger.Error(o.what+" cannot be read; nothing is lost, it is tried until it can",
			"problem", problem.Kind, "error", err, "remedy", problem.Remedy)
	}
	return min(o.backoff.pause(n), maxDatabasePause)
}

// over tells that the database answered, and reports whether it answers everybody.
func (o *outage) over(p *pipeline) bool {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if !o.failing[p] {
		return len(o.failing) == 0
	}
	delete(o.failing, p)
	if len(o.failing) > 0 {
		return false
	}
	o.logger.Info(o.what+" can be read again", "after", time.Since(o.since).Round(time.Millisecond).String(), "attempts", o.attempts)
	o.problem = ""
	return true
}

// gone tells that a pipeline claims no more.
func (o *outage) gone(p *pipeline) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	delete(o.failing, p)
}
