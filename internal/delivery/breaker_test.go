package delivery

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

var (
	epoch  = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	steady = Backoff{Initial: 200 * time.Millisecond, Max: 30 * time.Second, Multiplier: 2}
)

func TestBackoffGrowsToItsMaximum(t *testing.T) {
	for failures, want := range map[int]time.Duration{
		0: 200 * time.Millisecond, 1: 200 * time.Millisecond, 2: 400 * time.Millisecond, 5: 3200 * time.Millisecond,
		8: 25600 * time.Millisecond, 9: 30 * time.Second, 5000: 30 * time.Second,
	} {
		if got := steady.pause(failures); got != want {
			t.Errorf("pause after %d failures: %s, want %s", failures, got, want)
		}
	}
	jittery := steady
	jittery.Jitter = 0.2
	least, most := time.Hour, time.Duration(0)
	for range 2000 {
		pause := jittery.pause(3)
		least, most = min(least, pause), max(most, pause)
	}
	if least < 640*time.Millisecond || most > 960*time.Millisecond || least > 700*time.Millisecond || most < 900*time.Millisecond {
		t.Errorf("pauses with jitter 0.2 of 800 ms are between %s and %s", least, most)
	}
}

// lastByte says that a message's partition is the last byte of its key.
type lastByte struct{}

func (lastByte) Partition(m *sinks.Message) (int32, bool) {
	if len(m.Key) == 0 {
		return 0, false
	}
	return int32(m.Key[len(m.Key)-1]), true
}

func (lastByte) Layouts() uint64 { return 0 }

func partitioned(string) sinks.Partitioner { return lastByte{} }

func undivided(string) sinks.Partitioner { return nil }

// target is where messages of a topic go, in a table with one sink.
func target(t *testing.T, b *breakers, m *sinks.Message) route.Target {
	t.Helper()
	target, err := b.routes.Resolve(m.Topic, m.Type, m.Key)
	if err != nil {
		t.Fatal(err)
	}
	m.Destination = target.Destination
	return target
}

func TestBreakersByScope(t *testing.T) {
	row := func(id int64, topic, key string) *source.Row {
		r := &source.Row{ID: id, Topic: topic}
		if key != "" {
			r.Key = []byte(key)
		}
		return r
	}
	rows := []*source.Row{row(7, "a", "k1"), row(8, "a", "j1"), row(9, "a", "k2"), row(10, "b", "k1"), row(11, "a", "")}
	for _, test := range []struct {
		name  string
		scope func(b *breakers, m *sinks.Message) scope
		want  []int64
	}{
		{"key", func(*breakers, *sinks.Message) scope { return scope{topic: "a", key: []byte("k1"), id: 7} }, []int64{7}},
		{"no key", func(*breakers, *sinks.Message) scope { return scope{topic: "a", id: 11} }, []int64{11}},
		{"destination", func(b *breakers, m *sinks.Message) scope {
			whole, _, _ := b.placesOf(m, target(t, b, m))
			return scope{topic: "a", key: []byte("k1"), id: 7, place: whole, hasPlace: true}
		}, []int64{7, 8, 9, 11}},
		{"partition", func(b *breakers, m *sinks.Message) scope {
			_, part, _ := b.placesOf(m, target(t, b, m))
			return scope{topic: "a", key: []byte("k1"), id: 7, place: part, hasPlace: true}
		}, []int64{7, 8}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBreakers(compile(t, route.Config{Sink: "main"}), partitioned)
			m := &sinks.Message{Sequence: 7, Topic: "a", Key: []byte("k1")}
			s := test.scope(b, m)
			if s.key == nil {
				m = &sinks.Message{Sequence: 11, Topic: "a"}
			}
			goes := target(t, b, m)
			held := func() (ids []int64) {
				for _, r := range rows {
					if b.holds(r) {
						ids = append(ids, r.ID)
					}
				}
				return ids
			}
			failures, pause, news := b.open(epoch, s, "r", steady)
			if failures != 1 || pause != 200*time.Millisecond || !news {
				t.Errorf("first failure: %d, %s, %t", failures, pause, news)
			}
			expect(t, "held back", held(), test.want)

			// Others of the same batch say nothing new, and what was sent before does not close it.
			if failures, _, news := b.open(epoch, s, "r", steady); failures != 1 || news {
				t.Errorf("the same again: %d, %t", failures, news)
			}
			b.published(epoch, m, goes)
			expect(t, "held back", held(), test.want)

			// When its pause is over it is tried with what failed, and all else waits on.
			if due, _, next := b.due(epoch.Add(pause-1), maxTried); len(due) != 0 || !next.Equal(epoch.Add(pause)) {
				t.Errorf("before its time %d are due, the next one at %s", len(due), next)
			}
			now := epoch.Add(pause)
			due, ids, _ := b.due(now, maxTried)
			expect(t, "tried with", ids, []int64{s.id})
			b.tried(now, due, &memoryBatch{messages: []sinks.Message{*m}}, steady)
			if again, _, _ := b.due(now, maxTried); len(again) != 0 {
				t.Error("it is tried twice at a time")
			}
			expect(t, "held back meanwhile", held(), test.want)
			if failures, pause, news = b.open(now, s, "r", steady); failures != 2 || pause != 400*time.Millisecond || news {
				t.Errorf("second failure: %d, %s, %t", failures, pause, news)
			}
			b.ended(now, due, steady)

			// Once it got through, its failures are forgotten.
			now = now.Add(pause)
			due, _, _ = b.due(now, maxTried)
			b.tried(now, due, &memoryBatch{messages: []sinks.Message{*m}}, steady)
			shrunk := b.shrunk
			b.published(now, m, goes)
			if !b.empty() || b.shrunk == shrunk {
				t.Errorf("after success: %+v", b)
			}
			if failures, _, _ := b.open(now, s, "r", steady); failures != 1 {
				t.Errorf("a failure after success is number %d", failures)
			}
		})
	}
}

func TestBreakerOfATotalOrderHoldsBackEverything(t *testing.T) {
	b := newBreakers(compile(t, route.Config{Sink: "main"}), undivided)
	_, pause, _ := b.open(epoch, scope{topic: "a", id: 7, everything: true}, "r", steady)
	if until, held := b.all(epoch); !held || !until.Equal(epoch.Add(pause)) {
		t.Errorf("held %t until %s", held, until)
	}
	if _, held := b.all(epoch.Add(pause)); held {
		t.Error("held back after its pause")
	}
	m := &sinks.Message{Sequence: 7, Topic: "a"}
	b.published(epoch.Add(pause), m, target(t, b, m))
	if !b.empty() {
		t.Error("open after success")
	}
}

func TestBreakersOutliveTheSuccessOfEarlierMessages(t *testing.T) {
	// A batch of key k: one acknowledged, the next refused.
	b := newBreakers(compile(t, route.Config{Sink: "main"}), undivided)
	b.open(epoch, scope{topic: "a", key: []byte("k"), id: 2}, "r", steady)
	for id, m := range []sinks.Message{{Topic: "a", Key: []byte("k")}, {Topic: "a", Key: []byte("other")}, {Topic: "b", Key: []byte("k")}} {
		m.Sequence = int64(id + 3)
		b.published(epoch, &m, target(t, b, &m))
	}
	if !b.holds(&source.Row{ID: 9, Topic: "a", Key: []byte("k")}) {
		t.Error("the key is not held back")
	}
}

func TestBreakersEscalateToTheTopic(t *testing.T) {
	b := newBreakers(compile(t, route.Config{Sink: "main"}), undivided)
	for i := range maxParts {
		s := scope{topic: "a", id: int64(i)}
		if i%2 == 0 {
			s.key = fmt.Append(nil, i)
		}
		b.open(epoch, s, "r", steady)
	}
	if len(b.keys) != maxParts/2 || len(b.ids) != maxParts/2 || len(b.places) != 0 {
		t.Fatalf("%d keys, %d ids, %d places", len(b.keys), len(b.ids), len(b.places))
	}
	b.open(epoch, scope{topic: "b", key: []byte("one more")}, "r", steady)
	if len(b.keys)+len(b.ids) != maxParts || !b.holds(&source.Row{Topic: "b", Key: []byte("another")}) {
		t.Errorf("%d keys, %d ids; want topic b as a whole", len(b.keys), len(b.ids))
	}
	m := &sinks.Message{Topic: "b", Key: []byte("one more")}
	b.published(epoch.Add(time.Second), m, target(t, b, m))
	if b.holds(&source.Row{Topic: "b", Key: []byte("another")}) {
		t.Error("topic b is held back after success")
	}
}

// The rows that opened a breaker were cancelled, or another relay has sent them.
func TestBreakerWhoseRowsAreGoneCloses(t *testing.T) {
	b := newBreakers(compile(t, route.Config{Sink: "main"}), undivided)
	b.open(epoch, scope{topic: "a", key: []byte("k"), id: 1}, "r", steady)
	b.open(epoch, scope{topic: "a", id: 2}, "r", steady)
	now := epoch
	for range samplesGone {
		if b.empty() {
			t.Fatal("closed at once")
		}
		now = now.Add(time.Minute)
		due, ids, _ := b.due(now, maxTried)
		slices.Sort(ids)
		expect(t, "tried with", ids, []int64{1, 2})
		b.tried(now, due, nil, steady)
	}
	if !b.empty() {
		t.Errorf("open for %d keys and %d rows", len(b.keys), len(b.ids))
	}
}

func TestBreakersAreTriedWithSoManyRowsAtATime(t *testing.T) {
	b := newBreakers(compile(t, route.Config{Sink: "main"}), undivided)
	for i := range 30 {
		b.open(epoch, scope{topic: "a", key: fmt.Append(nil, i), id: int64(i)}, "r", steady)
	}
	now := epoch.Add(time.Second)
	due, ids, next := b.due(now, 20)
	if len(due) != 20 || len(ids) != 20 || next.After(now) {
		t.Errorf("%d breakers with %d rows, the next one at %s", len(due), len(ids), next)
	}
}

func TestPermanentRefusalsThinOut(t *testing.T) {
	f := Failures{Policy: Park, MaxAttempts: 5, Backoff: steady}
	permanent := &sinks.Error{Scope: sinks.ScopeMessage, Permanent: true, Err: errors.New("too large")}
	if o := f.refused(route.Target{}, 30, permanent); o.RetryIn != permanentPause || o.Verdict != source.Parked {
		t.Errorf("attempt 30 of what cannot succeed: %+v", o)
	}
	if o := f.refused(route.Target{}, 30, errors.New("no")); o.RetryIn != steady.Max {
		t.Errorf("attempt 30 of what may: %+v", o)
	}
}

// What a claim leaves out because of a breaker, it leaves out to its end: it may have passed the first rows
// of a key when the breaker closes.
func TestClaimUnderWayWhenABreakerCloses(t *testing.T) {
	r := New(Options{
		Source: newTable(1).source, Sinks: map[string]sinks.Publisher{"main": &broker{}}, Routes: compile(t, route.Config{Sink: "main"}),
		Workers: 1, Failures: Failures{Backoff: steady}, Logger: slog.New(slog.DiscardHandler),
	})
	p := r.pipelines[0]
	p.breakers.open(epoch, scope{topic: "a", key: []byte("k"), id: 1}, "r", steady)
	before := p.exclusion()
	k, other := &source.Row{ID: 2, Topic: "a", Key: []byte("k")}, &source.Row{ID: 3, Topic: "a", Key: []byte("other")}
	if !before.Holds(k) || before.Holds(other) {
		t.Fatalf("held back: %t and %t", before.Holds(k), before.Holds(other))
	}
	m := &sinks.Message{Sequence: 1, Topic: "a", Key: []byte("k")}
	p.breakers.published(epoch.Add(time.Minute), m, target(t, p.breakers, m))
	if !before.Holds(k) {
		t.Error("the claim under way may take a later row of the key")
	}
	after := p.exclusion()
	if after.Shrunk == before.Shrunk || after.Holds != nil {
		t.Errorf("the next claim leaves out %v", after)
	}
}

// divided is a sink with some partitions, of which the last byte of a key chooses one.
type divided struct {
	*broker
	partitions atomic.Int64
}

func (d *divided) Partition(m *sinks.Message) (int32, bool) {
	n := d.partitions.Load()
	if n == 0 || len(m.Key) == 0 {
		return 0, false
	}
	return int32(int64(m.Key[len(m.Key)-1]) % n), true
}

func (d *divided) Layouts() uint64 { return uint64(d.partitions.Load()) }

// When a destination gets more partitions, or is not known any more, a breaker of one of
// them holds other rows than before. What floors passed because of it must be
// looked at again, or a later row of a key overtakes those.
func TestMorePartitionsLetGoOfRows(t *testing.T) {
	for _, partitions := range []int64{5, 0} {
		sink := &divided{broker: &broker{}}
		sink.partitions.Store(2)
		r := New(Options{
			Sinks: map[string]sinks.Publisher{"main": sink}, Routes: compile(t, route.Config{Sink: "main"}), Workers: 1,
			Failures: Failures{Backoff: steady}, Logger: slog.New(newJournal()),
		})
		p := r.pipelines[0]
		row := &source.Row{ID: 1, Topic: "a", Key: []byte{3}} // partition 1 of 2, and 3 of 5
		m := &sinks.Message{Sequence: 1, Topic: "a", Key: row.Key}
		p.exclusion()
		_, part, known := p.breakers.placesOf(m, target(t, p.breakers, m))
		if !known || part.partition != 1 {
			t.Fatalf("place %+v", part)
		}
		p.breakers.open(time.Now(), scope{topic: "a", id: 1, place: part, hasPlace: true}, "r", steady)

		before := p.exclusion()
		if !before.Holds(row) || before.Holds(&source.Row{ID: 2, Topic: "a", Key: []byte{2}}) {
			t.Fatal("the breaker does not hold its partition alone")
		}
		sink.partitions.Store(partitions)
		if !before.Holds(row) {
			t.Errorf("with %d partitions a claim under way takes a row that floors have passed", partitions)
		}
		after := p.exclusion()
		if after.Shrunk == before.Shrunk {
			t.Errorf("with %d partitions floors stay above rows that are held back no more", partitions)
		}
		if after.Holds != nil && after.Holds(row) {
			t.Errorf("with %d partitions the row is still held back", partitions)
		}
	}
}
