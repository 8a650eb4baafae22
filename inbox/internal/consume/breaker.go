package consume

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/outboxrelay/relay/internal/sqlstate"
)

// breaker is a circuit breaker. It opens when several messages in a row, without
// a success in between, used up their attempts with the same error: then the
// cause is hardly in the messages. While it is open one message at a time is
// tried, after growing pauses, and a success closes it.
type breaker struct {
	threshold int
	backoff   Backoff
	// changed is called, with mu held, when it opens or closes.
	changed func(open bool)

	mu sync.Mutex
	// alike is how many messages in a row failed with the error that signature
	// stands for.
	signature string
	alike     int
	open      bool
	// failures are those since it opened; until is when the next trial may begin,
	// and probing says that one runs.
	failures int
	until    time.Time
	probing  bool
	// news is closed, and replaced, when there is something new to wait for.
	news chan struct{}
}

func newBreaker(threshold int, backoff Backoff, changed func(bool)) *breaker {
	return &breaker{threshold: threshold, backoff: backoff, changed: changed, news: make(chan struct{})}
}

// admit waits until a message may be tried. probe says that it is the one that
// shows whether messages can be processed again: the caller then calls probed.
// It is not ok when ctx has ended.
func (b *breaker) admit(ctx context.Context) (probe, ok bool) {
	for {
		b.mu.Lock()
		if !b.open {
			b.mu.Unlock()
			return false, ctx.Err() == nil
		}
		pause, news := time.Until(b.until), b.news
		if !b.probing && pause <= 0 {
			b.probing = true
			b.mu.Unlock()
			return true, ctx.Err() == nil
		}
		var due <-chan time.Time
		if !b.probing {
			timer := time.NewTimer(pause)
			defer timer.Stop()
			due = timer.C
		}
		b.mu.Unlock()
		select {
		case <-due:
		case <-news:
		case <-ctx.Done():
			return false, false
		}
	}
}

// probed ends a trial. Unless it was a success the next one waits longer.
func (b *breaker) probed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
	if b.open {
		b.failures++
		b.until = time.Now().Add(b.backoff.Pause(b.failures))
	}
	b.tell()
}

func (b *breaker) tell() {
	close(b.news)
	b.news = make(chan struct{})
}

// succeeded closes it.
func (b *breaker) succeeded() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.alike = 0
	if b.open {
		b.open, b.failures = false, 0
		b.changed(false)
		b.tell()
	}
}

// holds is told that a message used up its attempts. It reports whether the
// message is to stay for longer instead of being put aside.
func (b *breaker) holds(signature string) bool {
	if b.threshold < 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open {
		return true
	}
	if signature != b.signature {
		b.signature, b.alike = signature, 0
	}
	if b.alike++; b.alike < b.threshold {
		return false
	}
	b.open, b.failures = true, 1
	b.until = time.Now().Add(b.backoff.Pause(1))
	b.changed(true)
	return true
}

func (b *breaker) isOpen() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open
}

// signature is what failures with one cause have in common: the SQLSTATE, or the
// text without what differs from message to message, numbers, ids and quoted
// values.
func signature(err error) string {
	if failed, ok := errors.AsType[*Error](err); ok && failed.stage.timeout {
		return errTimeout.Error()
	}
	if state := sqlstate.Of(err); state != "" {
		return "SQLSTATE " + state
	}
	var b strings.Builder
	var quote rune
	word := func(c rune) bool { return unicode.IsLetter(c) || unicode.IsDigit(c) || c == '_' || c == '-' }
	text := []rune(err.Error())
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '`' || c == '\'' && (i == 0 || !word(text[i-1])):
			quote = c
		case word(c):
			end := i
			for end < len(text) && word(text[end]) {
				end++
			}
			if w := string(text[i:end]); !strings.ContainsFunc(w, unicode.IsDigit) {
				b.WriteString(w)
			}
			i = end - 1
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}
