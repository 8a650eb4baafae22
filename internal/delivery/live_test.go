package delivery

import (
	"strings"
	"testing"
	"time"
)

func TestLiveNoticesALoopThatHangs(t *testing.T) {
	l := New(Options{PollInterval: time.Second, PublishTimeout: time.Second, Workers: 1})
	if err := l.Live(); err != nil {
		t.Errorf("before it runs: %v", err)
	}
	l.turned.Store(time.Now().Add(-20 * time.Second).UnixNano())
	if err := l.Live(); err != nil {
		t.Errorf("within the bounds of a turn: %v", err)
	}
	l.turned.Store(time.Now().Add(-time.Hour).UnixNano())
	if err := l.Live(); err == nil || !strings.Contains(err.Error(), "start it anew") {
		t.Errorf("an hour later: %v", err)
	}
}
