package source_test

import (
	"testing"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

// No index is too small for what a writer may write, however little it compresses.
func TestLongTextsAreGivenUpLikeOthers(t *testing.T) {
	db := pgtest.NewOutbox(t)
	const long = `(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 130) i)`
	db.Exec(t, `INSERT INTO outbox (topic, key, type, content_type) SELECT `+long+`, `+long+`, `+long+`, `+long)
	c := claimer(db.Pool, nil)
	settleAs(t, claim(t, c, source.Exclusion{}), outcomes{1: {Verdict: source.Parked, Attempts: 1, Reason: "r", Error: "e"}})
	db.Exec(t, `UPDATE outbox_parked SET next_retry_at = now()`)
	eventually(t, func() bool {
		batch := claimHeld(t, c)
		if batch == nil {
			return false
		}
		settleAs(t, batch, outcomes{1: {Verdict: source.Dead, Attempts: 2, Reason: "r", Error: "e"}})
		return true
	})
	if n := db.Int(t, `SELECT count(*) FROM outbox_dead_letters WHERE octet_length(topic) = 4160`); n != 1 {
		t.Errorf("%d dead letters", n)
	}
}
