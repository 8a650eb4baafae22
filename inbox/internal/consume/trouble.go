package consume

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// repeated is how often a lasting failure is logged again.
const repeated = time.Minute

// Trouble logs a lasting failure when it begins, when it changes and once a
// minute, and its end. It may be used concurrently.
type Trouble struct {
	mu   sync.Mutex
	text string
	told time.Time
}

// Begins is called for each failure.
func (t *Trouble) Begins(logger *slog.Logger, what string, err error, more ...any) {
	t.begins(logger, what, what+err.Error(), err, more...)
}

// begins: failures with the same text are one.
func (t *Trouble) begins(logger *slog.Logger, what, text string, err error, more ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if text == t.text && time.Since(t.told) < repeated {
		return
	}
	t.text, t.told = text, time.Now()
	logger.Warn(what, append([]any{"error", err}, more...)...)
}

// Over is called for each success.
func (t *Trouble) Over(logger *slog.Logger, what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.text != "" {
		t.text = ""
		logger.Info(what)
	}
}

// occasional logs what happens often once a minute at most, whatever the error.
type occasional struct {
	mu     sync.Mutex
	told   time.Time
	untold int
}

func (o *occasional) warn(logger *slog.Logger, what string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.untold++
	if time.Since(o.told) < repeated {
		return
	}
	logger.Warn(what, "times", o.untold, "error", err)
	o.told, o.untold = time.Now(), 0
}

// Sleep reports whether the whole time has passed.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
