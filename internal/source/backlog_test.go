package source_test

import (
	"math"
	"testing"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

// Drivers write their zero time as minus infinity, and clocks differ.
func TestAgesOfOddTimes(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, created_at) VALUES
			('minus', '-infinity'), ('plus', 'infinity'), ('future', now() + interval '1 day'), ('ancient', '4713-01-01 BC'),
			('mixed', '-infinity'), ('mixed', now() - interval '1 minute'), ('mixed', '294276-01-01')`,
		`INSERT INTO outbox (topic, available_at, created_at) VALUES
			('due', '-infinity', now() - interval '1 hour'), ('due both', '-infinity', '-infinity'), ('never', 'infinity', now())`)
	want := map[string][2]float64{
		"minus": {0, 0}, "plus": {0, 0}, "future": {0, 0}, "ancient": {2e11, 3e11}, "mixed": {60, 160}, "due": {3600, 3700}, "due both": {0, 0},
	}
	check := func(how string, backlog []source.Backlog, err error) {
		t.Helper()
		if err != nil || len(backlog) != len(want) {
			t.Fatalf("%s: %+v, error %v", how, backlog, err)
		}
		for _, b := range backlog {
			if w, ok := want[b.Topic]; !ok || math.IsNaN(b.OldestAge) || b.OldestAge < w[0] || b.OldestAge > w[1] {
				t.Errorf("%s: %+v, want an age in %v", how, b, w)
			}
		}
	}
	estimated, err := source.NewEstimator(db.Pool, "public", "outbox").Estimate(t.Context())
	check("estimated", estimated, err)
	conn, err := db.Pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	counted, err := source.ReadBacklog(t.Context(), conn.Conn(), "public", "outbox")
	check("counted", counted, err)
}
