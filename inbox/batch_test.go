package inbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/inbox"
)

func TestBatch(t *testing.T) {
	db := newDatabase(t)
	box := &inbox.Inbox{Consumer: "mail"}
	a, b, c := newMessage(), newMessage(), newMessage()
	result, err := box.Process(t.Context(), db.Pool, b, apply)
	expectResult(t, "b", result, inbox.Processed, err)
	var fresh []inbox.ID
	results, err := box.ProcessBatch(t.Context(), db.Pool, []inbox.Message{c, a, b, a, c}, func(ctx context.Context, tx pgx.Tx, messages []inbox.Message) error {
		for _, m := range messages {
			fresh = append(fresh, m.ID)
		}
		return applyAll(ctx, tx, messages)
	})
	if err != nil || fmt.Sprint(results) != "[processed processed duplicate duplicate duplicate]" {
		t.Errorf("%v, %v", results, err)
	}
	if !slices.Equal(fresh, []inbox.ID{c.ID, a.ID}) {
		t.Errorf("the handler got %v", fresh)
	}
	results, err = box.ProcessBatch(t.Context(), db.Pool, []inbox.Message{a, b}, func(context.Context, pgx.Tx, []inbox.Message) error {
		t.Error("the handler was called for nothing")
		return nil
	})
	if err != nil || fmt.Sprint(results) != "[duplicate duplicate]" {
		t.Errorf("%v, %v", results, err)
	}
	expectEffects(t, db, 3)
}

// Batches of the same messages in other orders, all at the same time, without
// retries: each message has one effect and nobody deadlocks.
func TestBatchesDoNotDeadlock(t *testing.T) {
	db := newDatabase(t)
	const messages, batches = 60, 8
	all := make([]inbox.Message, messages)
	for i := range all {
		all[i] = newMessage()
		all[i].Key = fmt.Appendf(nil, "key-%d", i%7)
		all[i].Sequence = int64(i + 1)
	}
	box := &inbox.Inbox{Consumer: "mail", Retries: -1, Order: inbox.OrderReport}
	var mutex sync.Mutex
	ran := 0
	var group sync.WaitGroup
	for range batches {
		group.Go(func() {
			for range 5 {
				some := slices.Clone(all)
				rand.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
				results, err := box.ProcessBatch(context.Background(), db.Pool, some[:messages/2], applyAll)
				if err != nil {
					t.Error(err)
				}
				mutex.Lock()
				for _, r := range results {
					if r.Ran() {
						ran++
					}
				}
				mutex.Unlock()
			}
		})
	}
	group.Wait()
	effects := int(db.Int(t, `SELECT count(*) FROM effects`))
	expectEffects(t, db, effects)
	if ran != effects || effects < messages/2 {
		t.Errorf("%d messages were reported as processed, there are %d effects", ran, effects)
	}
}

// seen is what an inbox must remember, in a few lines: the ids, and the
// newest sequence of each topic and key.
type seen struct {
	ids    map[inbox.ID]bool
	newest map[string]int64
}

// process says what becomes of each message.
func (s *seen) process(order inbox.OrderCheck, messages []inbox.Message) (results []inbox.Result) {
	for _, m := range messages {
		stream := m.Topic + "/" + string(m.Key)
		result := inbox.Processed
		switch {
		case s.ids[m.ID]:
			result = inbox.Duplicate
		case order == inbox.OrderOff || m.Key == nil || m.Sequence == 0 || m.Sequence > s.newest[stream]:
		case order == inbox.OrderReport:
			result = inbox.Late
		default:
			result = inbox.Stale
		}
		s.ids[m.ID] = true
		if m.Key != nil {
			s.newest[stream] = max(s.newest[stream], m.Sequence)
		}
		results = append(results, result)
	}
	return results
}

func (s *seen) clone() *seen {
	c := &seen{map[inbox.ID]bool{}, map[string]int64{}}
	for id := range s.ids {
		c.ids[id] = true
	}
	for stream, sequence := range s.newest {
		c.newest[stream] = sequence
	}
	return c
}

// TestBatchesAgainstAModel processes random batches, some of which fail, and
// single messages, with pgx or database/sql, and compares each result with the model's.
func TestBatchesAgainstAModel(t *testing.T) {
	db := newDatabase(t)
	standard := openSQL(t, db.URL)
	for _, order := range []inbox.OrderCheck{inbox.OrderOff, inbox.OrderReport, inbox.OrderRefuse} {
		for round := range 4 {
			seed := rand.Uint64()
			t.Run(fmt.Sprintf("order %d, seed %d", order, seed), func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 0))
				box := &inbox.Inbox{Consumer: fmt.Sprintf("%d-%d", order, round), Order: order}
				// Few topics, keys and messages, so that they meet.
				pool := make([]inbox.Message, 40)
				for i := range pool {
					pool[i] = newMessage()
					pool[i].Topic = []string{"a", "b", `"odd\', {}`}[random.IntN(3)]
					pool[i].Key = [][]byte{nil, {}, []byte("k"), {0, 0xff, '\\'}}[random.IntN(4)]
					pool[i].Sequence = int64(random.IntN(30)) // 0: unknown
				}
				model := &seen{map[inbox.ID]bool{}, map[string]int64{}}
				for step := range 12 {
					batch := make([]inbox.Message, 1+random.IntN(12))
					for i := range batch {
						batch[i] = pool[random.IntN(len(pool))]
					}
					after := model.clone()
					want := after.process(order, batch)
					var wantFresh, fresh []inbox.ID
					for i, r := range want {
						if r.Ran() {
							wantFresh = append(wantFresh, batch[i].ID)
						}
					}
					fails := random.IntN(4) == 0 && len(wantFresh) > 0
					broken := errors.New("broken")
					note := func(messages ...inbox.Message) error {
						for _, m := range messages {
							fresh = append(fresh, m.ID)
						}
						if fails {
							return broken
						}
						return nil
					}
					var got []inbox.Result
					var err error
					switch driver := random.IntN(2); {
					case len(batch) == 1:
						var result inbox.Result
						result, err = box.Process(t.Context(), db.Pool, batch[0], func(_ context.Context, _ pgx.Tx, m inbox.Message) error { return note(m) })
						got = []inbox.Result{result}
					case driver == 0:
						got, err = box.ProcessSQLBatch(t.Context(), standard, batch, func(_ context.Context, _ *sql.Tx, fresh []inbox.Message) error { return note(fresh...) })
					default:
						got, err = box.ProcessBatch(t.Context(), db.Pool, batch, func(_ context.Context, _ pgx.Tx, fresh []inbox.Message) error { return note(fresh...) })
					}
					if !slices.Equal(fresh, wantFresh) {
						t.Fatalf("step %d: the handler got %v, want %v", step, fresh, wantFresh)
					}
					if fails {
						if !errors.Is(err, broken) {
							t.Fatalf("step %d: %v", step, err)
						}
						continue // and the model is as before
					}
					if err != nil || !slices.Equal(got, want) {
						t.Fatalf("step %d: %v (%v), want %v", step, got, err, want)
					}
					model = after
				}
				if n := db.Int(t, fmt.Sprintf(`SELECT count(*) FROM inbox WHERE consumer = '%s'`, box.Consumer)); int(n) != len(model.ids) {
					t.Errorf("%d ids are recorded, want %d", n, len(model.ids))
				}
			})
		}
	}
}
