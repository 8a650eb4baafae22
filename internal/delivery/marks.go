package delivery

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/outboxrelay/relay/internal/source"
)

// maxMarkPause is the longest pause before marking is tried again while other messages may be marked.
const maxMarkPause = time.Second

// marks is whether what was published can be settled, as far as is known. While nothing can,
// nothing is claimed: it would be published and then wait, too. It is safe for concurrent use.
type marks struct {
	backoff Backoff
	logger  *slog.Logger

	mutex    sync.Mutex
	failures int
	until    time.Time
	// none: the last try settled nothing.
	none    bool
	problem string
}

// due returns when to try again, and whether messages are claimed until then.
func (m *marks) due(time.Time) (until time.Time, claims bool) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.until, !m.none
}

// claims reports whether messages may be claimed.
func (m *marks) claims() bool {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return !m.none
}

// failed takes over that messages could not be settled, and logs it once.
func (m *marks) failed(err *source.UnsettledError) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.fail(err)
}

// fail counts a failure; its caller holds the mutex.
func (m *marks) fail(err *source.UnsettledError) {
	m.failures++
	m.none = err.Settled == 0 && err.Others != source.Works
	pause := m.backoff.pause(m.failures)
	if !m.none || err.Others == source.Untried {
		// Rows that cannot be settled by themselves have pauses of their own, and others do not wait for those.
		pause = min(pause, maxMarkPause)
	}
	m.until = time.Now().Add(pause)
	if source.IsWaiting(err) {
		return
	}
	problem := source.Explain(err)
	if problem.Kind == m.problem {
		return
	}
	m.problem = problem.Kind
	m.logger.Warn("published messages could not be marked; they are not sent again by this relay, and marked as soon as that works",
		"messages", err.Rows, "problem", problem.Kind, "error", err, "remedy", problem.Remedy)
}

// tried takes over the result of another try, and returns the pause before the next one.
func (m *marks) tried(err error) time.Duration {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	unsettled, ok := errors.AsType[*source.UnsettledError](err)
	switch {
	case ok:
		m.fail(unsettled)
	case err != nil:
		m.fail(&source.UnsettledError{Err: err, Others: source.Fails})
	default:
		if m.failures > 0 {
			m.logger.Info("published messages could be marked after all", "attempts", m.failures)
		}
		m.failures, m.none, m.problem, m.until = 0, false, "", time.Time{}
		return forever
	}
	return time.Until(m.until)
}
