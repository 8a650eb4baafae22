package source_test

import (
	"slices"
	"testing"
	"time"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

// A broker that went away acknowledged some rows of a batch and not the others.
// The next claim has to begin with those, not pass over them.
func TestRowsThatWereNotPublishedAreClaimedFirst(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key, created_at) SELECT 't', 'k', now() - interval '1 hour' FROM generate_series(1, 6)`)
	c := claimer(db.Pool, func(o *source.Options) { o.BatchSize = 3 * source.Shards })
	var got []int64
	// As often as it takes for positions to become floors.
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		batch := claim(t, c, source.Exclusion{})
		if batch == nil {
			t.Fatalf("nothing is claimed although rows are pending, after %v", got)
		}
		ids := sequences(batch)
		if want := db.Int(t, `SELECT min(id) FROM outbox WHERE published_at IS NULL`); ids[0] != want {
			t.Fatalf("the claim begins with row %d, the first that is pending is %d", ids[0], want)
		}
		settle(t, batch, some(func(i int) bool { return i == 0 }))
		got = append(got, ids[0])
		db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'k')`)
	}
	if !slices.IsSorted(got) {
		t.Errorf("published %v, want them in order", got)
	}
}
