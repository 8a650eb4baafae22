package delivery

import (
	"log/slog"
	"time"

	"github.com/outboxrelay/relay/internal/source"
)

// outage is the state of the database as the loop sees it: it logs each change
// once, and backs off.
type outage struct {
	backoff Backoff
	logger  *slog.Logger
	// what cannot be read.
	what     string
	failures int
	problem  string
	since    time.Time
}

// failed counts a failure and returns the pause before the next attempt.
func (o *outage) failed(err error) time.Duration {
	if o.failures == 0 {
		o.since = time.Now()
	}
	o.failures++
	problem := source.Explain(err)
	if problem.Kind != o.problem {
		o.problem = problem.Kind
		o.logger.Error(o.what+" cannot be read; nothing is lost, it is tried until it can",
			"problem", problem.Kind, "error", err, "remedy", problem.Remedy)
	}
	return min(o.backoff.pause(o.failures), maxDatabasePause)
}

// over tells that the database answered.
func (o *outage) over() {
	if o.failures > 0 {
		o.logger.Info(o.what+" can be read again", "after", time.Since(o.since).Round(time.Millisecond).String(), "attempts", o.failures)
	}
	o.failures, o.problem = 0, ""
}
