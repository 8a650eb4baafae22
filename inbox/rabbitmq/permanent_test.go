package rabbitmq_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/inbox"
)

// TestHandlersVerdict puts aside after one attempt what the handler calls
// permanent, and tries later, in its place, what it wants to be.
func TestHandlersVerdict(t *testing.T) {
	b := newBench(t)
	b.send(1, 10, oneKey)
	const delay = 700 * time.Millisecond
	var tries []time.Time
	config := b.config()
	config.Handler = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		switch m.Sequence {
		case 4:
			return inbox.Permanent(errors.New("no JSON"))
		case 6:
			if tries = append(tries, time.Now()); len(tries) < 3 {
				return inbox.RetryAfter(errors.New("too many requests"), delay)
			}
		}
		return effect(ctx, tx, m)
	}
	c := b.start(config)
	all := b.awaitEffects(9)
	c.mustStop(t)
	if !slices.IsSorted(all) {
		t.Errorf("not in order: %v", all)
	}
	if n := b.database.Int(t, `SELECT count(*) FROM inbox_parked WHERE sequence = 4 AND attempts = 1 AND error = 'no JSON'`); n != 1 {
		t.Errorf("%d messages are parked after one attempt", n)
	}
	for n := range len(tries) - 1 {
		if pause := tries[n+1].Sub(tries[n]); pause < delay {
			t.Errorf("the pause before attempt %d was %s, less than %s", n+2, pause, delay)
		}
	}
	if s := c.Stats(); s.Failures != 3 || s.Poisoned != 1 {
		t.Errorf("%+v, want 3 failures and one message put aside", s)
	}
	b.checkEmpty()
}
