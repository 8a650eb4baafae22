package inbox_test

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/internal/failure"
)

func TestMarkedErrors(t *testing.T) {
	for name, mark := range map[string]func(error) error{
		"Permanent":  inbox.Permanent,
		"RetryAfter": func(err error) error { return inbox.RetryAfter(err, time.Second) },
	} {
		if err := mark(nil); err != nil {
			t.Errorf("%s(nil) is %v", name, err)
		}
		err := mark(io.ErrUnexpectedEOF)
		if !errors.Is(err, io.ErrUnexpectedEOF) || err.Error() != io.ErrUnexpectedEOF.Error() {
			t.Errorf("%s: %v does not stand for what it wraps", name, err)
		}
	}
	for delay, want := range map[time.Duration]time.Duration{time.Second: time.Second, 48 * time.Hour: inbox.MaxRetryAfter} {
		marked, ok := errors.AsType[*failure.RetryAfterError](inbox.RetryAfter(io.EOF, delay))
		if !ok || marked.Delay != want {
			t.Errorf("RetryAfter(%s): %+v, want %s", delay, marked, want)
		}
	}
}
