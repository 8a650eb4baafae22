package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

// faults breaks connections of a publisher around its produce requests.
type faults struct {
	// lose is the number of responses to lose: the broker appended, and the
	// client does not learn it. refuse is the number of requests to break before
	// they are sent.
	lose, refuse atomic.Int32
	// every breaks requests and responses at random, one of so many.
	every int
	lost  atomic.Int32
}

// inject makes the publisher's connections suffer from f.
func (f *faults) inject(p *Publisher) {
	dial := p.cluster.transport.Dial
	p.cluster.transport.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &faultyConn{Conn: conn, faults: f}, nil
	}
}

func (f *faults) take(counter *atomic.Int32) bool {
	for {
		n := counter.Load()
		if n == 0 {
			return f.every > 0 && rand.IntN(f.every) == 0
		}
		if counter.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

type faultyConn struct {
	net.Conn
	faults *faults

	mu        sync.Mutex
	producing bool
}

// isProduce reports whether a request begins here, whose API key behind the four
// bytes of its size is Produce's, 0.
func isProduce(request []byte) bool {
	return len(request) >= 6 && request[4] == 0 && request[5] == 0 && request[0] == 0
}

func (c *faultyConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	starts := !c.producing && isProduce(p)
	c.producing = c.producing || starts
	c.mu.Unlock()
	if starts && c.faults.take(&c.faults.refuse) {
		_ = c.Close()
		return 0, errors.New("broken before the request was sent")
	}
	return c.Conn.Write(p)
}

func (c *faultyConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	producing := c.producing
	c.producing = false
	c.mu.Unlock()
	if producing && n > 0 && c.faults.take(&c.faults.lose) {
		c.faults.lost.Add(1)
		_ = c.Close()
		return 0, io.EOF
	}
	return n, err
}

func TestLostResponseIsNoDuplicate(t *testing.T) {
	p := open(t, testConfig(t))
	f := &faults{}
	f.inject(p)
	topic := newTopic(t, 1)
	var messages []sinks.Message
	for n := range 100 {
		messages = append(messages, publishable(topic, int64(n), []byte("k")))
	}
	if results := p.Publish(t.Context(), messages[:50]); results != nil {
		t.Fatal(results)
	}
	f.lose.Store(1)
	if results := p.Publish(t.Context(), messages[50:]); results != nil {
		t.Fatal(results)
	}
	if f.lost.Load() != 1 {
		t.Fatalf("%d responses were lost, want 1", f.lost.Load())
	}
	wantSequences(t, readTopic(t, topic, 100, 20*time.Second), messages)
}

// TestGivenUpBatchDoesNotLendItsSequence loses two responses in a row, so that
// the call fails although the broker has the batch. What comes next must not
// pass for the same batch.
func TestGivenUpBatchDoesNotLendItsSequence(t *testing.T) {
	p := open(t, testConfig(t))
	f := &faults{}
	f.inject(p)
	topic := newTopic(t, 1)
	first := publishable(topic, 1, []byte("k"))
	lost := publishable(topic, 2, []byte("k"))
	next := publishable(topic, 3, []byte("other"))
	if results := p.Publish(t.Context(), []sinks.Message{first}); results != nil {
		t.Fatal(results)
	}
	f.lose.Store(2)
	results := p.Publish(t.Context(), []sinks.Message{lost})
	if results == nil || sinks.ScopeOf(results[0]) != sinks.ScopeSink || sinks.IsPermanent(results[0]) {
		t.Fatalf("results %v, want an error of scope sink", results)
	}
	if results := p.Publish(t.Context(), []sinks.Message{next}); results != nil {
		t.Fatal(results)
	}
	wantSequences(t, readTopic(t, topic, 3, 20*time.Second), []sinks.Message{first, lost, next})
}

// TestOrderUnderFaults has callers that retry what failed, as the relay does,
// while every tenth request breaks.
func TestOrderUnderFaults(t *testing.T) {
	p := open(t, testConfig(t))
	f := &faults{every: 10}
	f.inject(p)
	topic := newTopic(t, 3)
	const callers, rounds, size = 4, 15, 60
	var all sync.WaitGroup
	for caller := range callers {
		all.Go(func() {
			for round := range rounds {
				var pending []sinks.Message
				for n := range size {
					sequence := int64(caller*1_000_000 + round*size + n)
					pending = append(pending, publishable(topic, sequence, fmt.Appendf(nil, "%d-%d", caller, n%7)))
				}
				for len(pending) > 0 {
					results := p.Publish(t.Context(), pending)
					var failed []sinks.Message
					for i := range results {
						if results[i] != nil {
							failed = append(failed, pending[i])
						}
					}
					pending = failed
				}
			}
		})
	}
	all.Wait()
	records := readTopic(t, topic, callers*rounds*size, 30*time.Second)
	highest, seen := map[string]int64{}, map[string]bool{}
	for _, r := range records {
		sequence := parseSequence(t, r)
		if seen[r.headers["message-sequence"]] {
			continue
		}
		seen[r.headers["message-sequence"]] = true
		if before, ok := highest[string(r.key)]; ok && sequence < before {
			t.Fatalf("key %s: %d came after %d", r.key, sequence, before)
		}
		highest[string(r.key)] = sequence
	}
	if len(seen) != callers*rounds*size {
		t.Errorf("%d different messages, want %d", len(seen), callers*rounds*size)
	}
	t.Logf("%d responses lost, %d duplicates", f.lost.Load(), len(records)-len(seen))
	if f.lost.Load() == 0 {
		t.Error("no response was lost: the test shows nothing")
	}
}
