package sinktest

import (
	"cmp"
	"context"
	"slices"
	"testing"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

// Relay sends batches through a stream until every message is acknowledged, as a source
// does that cannot be read again: it goes on with other keys while one is broken, and
// once everything that was sent of that key is answered, sends it again in order. A
// batch has the time limit, zero for none, which grows with each that fails. It returns how many messages failed.
func Relay(t *testing.T, stream sinks.Stream, batches [][]sinks.Message, limit time.Duration) (failed int) {
	t.Helper()
	r := relay{stream: stream, limit: limit, held: map[string]*held{}}
	for deadline := time.Now().Add(2 * patience); len(batches) > 0 || len(r.flights) > 0 || len(r.held) > 0; {
		r.sendHeld(t)
		if len(batches) > 0 {
			r.send(t, r.hold(batches[0]))
			batches = batches[1:]
		}
		r.answers(t, len(batches) == 0)
		time.Sleep(time.Millisecond) // as a source reads meanwhile; or all would be over before the first fault
		if time.Now().After(deadline) {
			t.Fatalf("%d batches are not sent, %d not answered, %d keys held after %s", len(batches), len(r.flights), len(r.held), 2*patience)
		}
	}
	return r.failed
}

type relay struct {
	stream         sinks.Stream
	limit          time.Duration
	flights        []flight
	sent, answered int
	held           map[string]*held
	failed         int
}

type flight struct {
	receipt  sinks.Receipt
	messages []sinks.Message
	cancel   context.CancelFunc
}

// held are the messages of a broken key, to be sent again once so many batches are
// answered.
type held struct {
	messages []sinks.Message
	until    int
}

func name(m *sinks.Message) string {
	if m.Key == nil {
		return "without key: " + string(m.ID[:])
	}
	return m.Destination + ", key: " + string(m.Key)
}

// hold takes the messages of broken keys out of a batch.
func (r *relay) hold(batch []sinks.Message) (rest []sinks.Message) {
	for _, m := range batch {
		if h := r.held[name(&m)]; h != nil {
			h.messages = append(h.messages, m)
		} else {
			rest = append(rest, m)
		}
	}
	return rest
}

func (r *relay) sendHeld(t *testing.T) {
	t.Helper()
	for key, h := range r.held {
		if h.until <= r.answered {
			delete(r.held, key)
			slices.SortFunc(h.messages, func(a, b sinks.Message) int { return cmp.Compare(a.Sequence, b.Sequence) })
			r.stream.Resume(h.messages[:1])
			r.send(t, h.messages)
		}
	}
}

func (r *relay) send(t *testing.T, messages []sinks.Message) {
	t.Helper()
	if len(messages) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	if r.limit > 0 {
		ctx, cancel = context.WithTimeout(t.Context(), r.limit)
	}
	r.sent++
	r.flights = append(r.flights, flight{r.stream.Send(ctx, messages), messages, cancel})
}

// answers takes the batches that are answered, in the order of sending; at the end it
// waits for one.
func (r *relay) answers(t *testing.T, wait bool) {
	t.Helper()
	for ; len(r.flights) > 0; wait = false {
		f := r.flights[0]
		if wait {
			results(t, f.receipt)
		}
		select {
		case <-f.receipt.Done():
		default:
			return
		}
		f.cancel()
		r.flights = r.flights[1:]
		r.answered++
		got := f.receipt.Results()
		checkResults(t, f.messages, got)
		if got != nil {
			r.limit += r.limit / 20 // or the same could go on for ever
		}
		for i, m := range f.messages {
			if result(got, i) == nil {
				if h := r.held[name(&m)]; h != nil {
					t.Fatalf("%s: sequence %d is acknowledged behind one that failed", name(&m), m.Sequence)
				}
				continue
			}
			r.failed++
			h := r.held[name(&m)]
			if h == nil {
				h = &held{until: r.sent}
				r.held[name(&m)] = h
			}
			h.messages = append(h.messages, m)
		}
	}
}

// results waits for a receipt, with the suite's patience.
func results(t *testing.T, receipt sinks.Receipt) []error {
	t.Helper()
	select {
	case <-receipt.Done():
	case <-time.After(patience):
		t.Fatalf("a batch is not answered after %s", patience)
	}
	return receipt.Results()
}

// BenchmarkStream reports how many rows of the batches, which are sent again and again, a
// stream takes per second.
func BenchmarkStream(b *testing.B, stream sinks.Stream, batches [][]sinks.Message) {
	b.Helper()
	if results := stream.Send(b.Context(), batches[0]).Results(); results != nil {
		b.Fatal(results)
	}
	rows := 0
	for b.Loop() {
		var receipts []sinks.Receipt
		for _, batch := range batches {
			receipts = append(receipts, stream.Send(b.Context(), batch))
			rows += len(batch)
		}
		for _, receipt := range receipts {
			if results := receipt.Results(); results != nil {
				b.Fatal(results)
			}
		}
	}
	b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
}
