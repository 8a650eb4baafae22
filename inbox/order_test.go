package inbox_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/internal/pgtest"
)

func sequenced(key string, sequence int64) inbox.Message {
	m := newMessage()
	m.Key, m.Sequence = []byte(key), sequence
	return m
}

func TestOrderCheck(t *testing.T) {
	for order, want := range map[inbox.OrderCheck]string{
		inbox.OrderOff:    "[processed processed processed processed processed duplicate]",
		inbox.OrderReport: "[processed processed late processed processed duplicate]",
		inbox.OrderRefuse: "[processed processed stale processed processed duplicate]",
	} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			eachProcessor(t, func(t *testing.T, db *pgtest.Database, p processor) {
				box := &inbox.Inbox{Consumer: "mail", Order: order}
				late := sequenced("k", 8)
				var got []inbox.Result
				for _, m := range []inbox.Message{sequenced("k", 5), sequenced("k", 9), late, sequenced("other", 7), sequenced("k", 10), late} {
					result, err := p.process(t.Context(), box, m, nothing)
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, result)
				}
				if fmt.Sprint(got) != want {
					t.Errorf("got %v, want %s", got, want)
				}
				// What is refused is seen, and has no effect.
				effects := int64(5)
				if order == inbox.OrderRefuse {
					effects = 4
				}
				if n := db.Int(t, `SELECT count(*) FROM effects`); n != effects {
					t.Errorf("%d effects, want %d", n, effects)
				}
				if n := db.Int(t, `SELECT count(*) FROM inbox`); n != 5 {
					t.Errorf("%d messages are seen, want 5", n)
				}
			})
		})
	}
}

// A key may be longer than an index row of PostgreSQL, and of any bytes.
func TestOrderCheckTakesAnyKey(t *testing.T) {
	db := newDatabase(t)
	box := &inbox.Inbox{Consumer: "mail", Order: inbox.OrderReport}
	long := bytes.Repeat([]byte{0, 0xff, 'x'}, 100_000)
	for i, want := range []inbox.Result{inbox.Processed, inbox.Late} {
		m := newMessage()
		m.Key, m.Sequence, m.Topic = long, int64(2-i), "t\x00\xff"
		result, err := box.Process(t.Context(), db.Pool, m, apply)
		expectResult(t, fmt.Sprint(m.Sequence), result, want, err)
	}
	if n := db.Int(t, `SELECT count(*) FROM inbox_order WHERE length(key) = 300000 AND sequence = 2`); n != 1 {
		t.Errorf("%d rows", n)
	}
}

// Two messages of one key at the same time: the second one's transaction waits,
// so that it is judged by what the first one left.
func TestOrderCheckTakesAKeyOneAtATime(t *testing.T) {
	for _, commits := range []bool{true, false} {
		t.Run(fmt.Sprint(commits), func(t *testing.T) {
			eachProcessor(t, func(t *testing.T, db *pgtest.Database, p processor) {
				box := &inbox.Inbox{Consumer: "mail", Order: inbox.OrderRefuse}
				tx, err := db.Pool.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback(context.Background())
				result, err := box.Process(t.Context(), tx, sequenced("k", 9), apply)
				expectResult(t, "the later message", result, inbox.Processed, err)
				done := make(chan struct{})
				var second inbox.Result
				var secondErr error
				go func() {
					defer close(done)
					second, secondErr = p.process(context.Background(), box, sequenced("k", 8), nothing)
				}()
				awaitWaiting(t, db)
				want := inbox.Stale
				if commits {
					err = tx.Commit(t.Context())
				} else {
					want = inbox.Processed
					err = tx.Rollback(t.Context())
				}
				if err != nil {
					t.Fatal(err)
				}
				<-done
				expectResult(t, "the earlier message", second, want, secondErr)
			})
		})
	}
}

// Whatever a topic is, an index can hold it.
func TestOrderCheckTakesAnyTopic(t *testing.T) {
	db := newDatabase(t)
	long := incompressible(9000)
	box := &inbox.Inbox{Consumer: incompressible(900), Order: inbox.OrderRefuse}
	for _, step := range []struct {
		topic    string
		sequence int64
		want     inbox.Result
	}{{long, 5, inbox.Processed}, {long, 4, inbox.Stale}, {long + "x", 4, inbox.Processed}} {
		m := sequenced("k", step.sequence)
		m.Topic = step.topic
		result, err := box.Process(t.Context(), db.Pool, m, apply)
		expectResult(t, "of a long topic", result, step.want, err)
	}
	box.Consumer = incompressible(1100)
	if _, err := box.Process(t.Context(), db.Pool, newMessage(), apply); err == nil {
		t.Error("a consumer of 1,100 bytes was accepted")
	}
}

// incompressible is a text of so many bytes.
func incompressible(n int) string {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%x", sha256.Sum256([]byte{byte(i), byte(i >> 8)}))
	}
	return string(b.Bytes()[:n])
}
