package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
)

// journal is a slog.Handler that keeps what was logged from Info on.
type journal struct {
	shared *lines
	with   []slog.Attr
}

type lines struct {
	mutex sync.Mutex
	all   []string
}

func newJournal() *journal { return &journal{shared: &lines{}} }

func (j *journal) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (j *journal) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message
	add := func(a slog.Attr) bool {
		if !a.Equal(slog.Attr{}) {
			line += fmt.Sprintf(" %s=%v", a.Key, a.Value)
		}
		return true
	}
	for _, a := range j.with {
		add(a)
	}
	r.Attrs(add)
	j.shared.mutex.Lock()
	defer j.shared.mutex.Unlock()
	j.shared.all = append(j.shared.all, line)
	return nil
}

func (j *journal) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journal{shared: j.shared, with: append(slices.Clone(j.with), attrs...)}
}

func (j *journal) WithGroup(string) slog.Handler { return j }

// having returns the lines that hold all words.
func (j *journal) having(words ...string) (found []string) {
	j.shared.mutex.Lock()
	defer j.shared.mutex.Unlock()
lines:
	for _, line := range j.shared.all {
		for _, word := range words {
			if !strings.Contains(line, word) {
				continue lines
			}
		}
		found = append(found, line)
	}
	return found
}
