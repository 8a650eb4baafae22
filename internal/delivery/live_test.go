package delivery

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/outboxrelay/relay/internal/source"
)

// blackHole is a database that takes what it is sent and answers nothing, once
// it is gone: every claim lasts until its own bound.
type blackHole struct {
	view
	gone  atomic.Bool
	limit time.Duration
}

func (s *blackHole) Claim(ctx context.Context, exclude source.Exclusion) (source.Batch, error) {
	if s.gone.Load() {
		return nil, s.swallow(ctx)
	}
	return s.view.Claim(ctx, exclude)
}

func (s *blackHole) ClaimHeld(ctx context.Context, _ source.Exclusion) (source.Batch, error) {
	return nil, s.swallow(ctx)
}

// HeldDue has something due all the time, once the database is gone.
func (s *blackHole) HeldDue() (time.Time, bool) { return time.Now(), s.gone.Load() }

func (s *blackHole) swallow(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(s.limit):
		return context.DeadlineExceeded
	}
}

// TestLiveBearsADatabaseThatSwallowsEverything: each step takes as long as it
// may, the wait for a slow broker and both claims included, and a new process
// would do no better.
func TestLiveBearsADatabaseThatSwallowsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(1)
		table.insert("orders", "a")
		hole := &blackHole{limit: 37 * time.Second}
		r := start(t, table, func(o *Options, r *relay) {
			o.Workers = 1
			o.Source = func(p Pipeline) Source {
				hole.view = table.source(p).(view)
				return hole
			}
			r.main.delay = 29 * time.Second
		})
		time.Sleep(time.Second) // the batch is under way
		hole.gone.Store(true)
		for range 300 {
			time.Sleep(time.Second)
			if err := r.Live(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestLiveNoticesAPipelineThatHangs(t *testing.T) {
	r := New(Options{PollInterval: time.Second, PublishTimeout: time.Second, Workers: 1})
	if err := r.Live(); err != nil {
		t.Errorf("before it runs: %v", err)
	}
	p := r.pipelines[0]
	p.turned.Store(time.Now().Add(-20 * time.Second).UnixNano())
	if err := r.Live(); err != nil {
		t.Errorf("within the bounds of a turn: %v", err)
	}
	p.turned.Store(time.Now().Add(-time.Hour).UnixNano())
	if err := r.Live(); err == nil || !strings.Contains(err.Error(), "restart it") {
		t.Errorf("an hour later: %v", err)
	}
}
