package kafka_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/inbox"
)

// What the handler calls permanent is put aside after one attempt, and what it
// wants to be tried later is, in its place.
func TestHandlersVerdict(t *testing.T) {
	s := newStage(t, 1)
	s.publish(0, 10, 1)
	const delay = 700 * time.Millisecond
	var tries []time.Time
	config := s.config(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		switch m.Source.Offset {
		case 4:
			return inbox.Permanent(errors.New("no JSON"))
		case 6:
			if tries = append(tries, time.Now()); len(tries) < 3 {
				return inbox.RetryAfter(errors.New("too many requests"), delay)
			}
		}
		return effect(ctx, tx, m)
	})
	c := start(t, config)
	s.awaitEffects(9)
	c.mustStop()
	s.checkEffects(9)
	if n := s.db.Int(t, `SELECT count(*) FROM inbox_parked WHERE source_offset = 4 AND attempts = 1 AND error = 'no JSON'`); n != 1 {
		t.Errorf("%d messages are parked after one attempt", n)
	}
	for n := range len(tries) - 1 {
		if pause := tries[n+1].Sub(tries[n]); pause < delay {
			t.Errorf("the pause before attempt %d was %s, less than %s", n+2, pause, delay)
		}
	}
	if stats := c.Stats(); stats.Failures != 3 || stats.Poisoned != 1 {
		t.Errorf("stats %+v", stats)
	}
}
