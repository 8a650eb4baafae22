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
	"syscall"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/sinks"
)

// faults breaks connections of a publisher around its produce requests.
type faults struct {
	// lose is the number of responses to lose: the broker appended, and the
	// client does not learn it. refuse is the number of requests to break before
	// they are sent.
	lose, refuse atomic.Int32
	// down lets nobody connect any more.
	down atomic.Bool
	// downAfter makes the next fault the moment from which nobody connects.
	downAfter atomic.Bool
	// every breaks requests and responses at random, one of so many.
	every int
	lost  atomic.Int32
}

// inject makes the publisher's connections suffer from f.
func (f *faults) inject(p *Publisher) {
	dial := p.cluster.transport.Dial
	p.cluster.transport.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if f.down.Load() {
			return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		}
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
			f.down.Store(f.downAfter.Swap(false))
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

// TestHundredLostResponses loses the answer to a hundred batches that the broker
// has appended, some of them two and three times in a row: a consumer finds each
// message at one offset, in order.
func TestHundredLostResponses(t *testing.T) {
	p := open(t, testConfig(t))
	f := &faults{}
	f.inject(p)
	topic := newTopic(t, 3)
	var sent []sinks.Message
	for round := range 100 {
		var messages []sinks.Message
		for range 20 {
			n := len(sent) + len(messages)
			messages = append(messages, publishable(topic, int64(n), fmt.Appendf(nil, "key-%d", n%7)))
		}
		f.lose.Store(1)
		switch {
		case round%25 == 0:
			f.lose.Store(3)
		case round%10 == 0:
			f.lose.Store(2)
		}
		if results := p.Publish(t.Context(), messages); results != nil {
			t.Fatalf("round %d: %v", round, results[0])
		}
		sent = append(sent, messages...)
	}
	if lost := f.lost.Load(); lost < 100 {
		t.Fatalf("%d responses were lost, want 100 at least", lost)
	}
	wantOneOffsetEach(t, topic, 3, sent)
}

// wantOneOffsetEach reads the topic as consumers do, partition by partition.
func wantOneOffsetEach(t *testing.T, topic string, partitions int, sent []sinks.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	where, highest := map[string]string{}, map[string]int64{}
	for partition := range partitions {
		reader := kafkago.NewReader(kafkago.ReaderConfig{Brokers: brokers(t), Topic: topic, Partition: partition, MinBytes: 1, MaxBytes: 8 << 20, MaxWait: 100 * time.Millisecond})
		defer reader.Close()
		client, done := admin(t)
		defer done()
		offsets, err := client.ListOffsets(ctx, &kafkago.ListOffsetsRequest{Topics: map[string][]kafkago.OffsetRequest{topic: {kafkago.LastOffsetOf(partition)}}})
		if err != nil {
			t.Fatal(err)
		}
		for offset, end := int64(0), offsets.Topics[topic][0].LastOffset; offset < end; {
			m, err := reader.ReadMessage(ctx)
			if err != nil {
				t.Fatalf("partition %d, offset %d of %d: %v", partition, offset, end, err)
			}
			offset = m.Offset + 1
			headers := map[string]string{}
			for _, h := range m.Headers {
				headers[h.Key] = string(h.Value)
			}
			here := fmt.Sprintf("partition %d, offset %d", m.Partition, m.Offset)
			if before, twice := where[headers["message-sequence"]]; twice {
				t.Errorf("message %s is at %s and at %s", headers["message-sequence"], before, here)
			}
			where[headers["message-sequence"]] = here
			sequence := parseSequence(t, record{headers: headers})
			if before, ok := highest[string(m.Key)]; ok && sequence < before {
				t.Errorf("key %s: %d came after %d, at %s", m.Key, sequence, before, here)
			}
			highest[string(m.Key)] = sequence
		}
	}
	if len(where) != len(sent) {
		t.Errorf("%d messages in the topic, want %d", len(where), len(sent))
	}
}

// TestGivenUpBatch loses a response and then the broker, so that the call fails
// although the broker has the batch. What comes next must not pass for the same
// batch, and the caller's second attempt is all that may be there twice.
func TestGivenUpBatch(t *testing.T) {
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
	f.lose.Store(1)
	f.downAfter.Store(true)
	results := p.Publish(t.Context(), []sinks.Message{lost})
	wantResult(t, results, 0, sinks.ScopeSink, false, "connection", "refused")
	f.down.Store(false)
	if results := p.Publish(t.Context(), []sinks.Message{next}); results != nil {
		t.Fatal(results)
	}
	wantSequences(t, readTopic(t, topic, 3, 20*time.Second), []sinks.Message{first, lost, next})
	if results := p.Publish(t.Context(), []sinks.Message{lost}); results != nil {
		t.Fatal(results)
	}
	wantSequences(t, readTopic(t, topic, 4, 20*time.Second), []sinks.Message{first, lost, next, lost})
}

// TestGivenUpBatchIsNotAppendedLate has a batch that was given up arrive when its
// messages have been sent again: the broker refuses it, by its epoch.
func TestGivenUpBatchIsNotAppendedLate(t *testing.T) {
	p := open(t, testConfig(t))
	f := &faults{}
	f.inject(p)
	topic := newTopic(t, 1)
	first, second := publishable(topic, 1, []byte("k")), publishable(topic, 2, []byte("k"))
	if results := p.Publish(t.Context(), []sinks.Message{first}); results != nil {
		t.Fatal(results)
	}
	// What is on its way, as the writer would send it now.
	l := p.writer(topic, 0)
	late := &recordBatch{envelope: p.envelope}
	late.begin()
	late.add(&second)
	if err := late.finish(time.Now()); err != nil {
		t.Fatal(err)
	}
	late.stamp(l.producer, l.sequence)

	f.refuse.Store(1)
	f.downAfter.Store(true)
	wantResult(t, p.Publish(t.Context(), []sinks.Message{second}), 0, sinks.ScopeSink, false, "connection", "refused")
	f.down.Store(false)
	if results := p.Publish(t.Context(), []sinks.Message{second}); results != nil {
		t.Fatal(results)
	}
	response, err := p.cluster.produce(t.Context(), p.layouts.of(topic).leaders[0], topic, 0, late.wire)
	if err != nil || !errors.Is(response.Error, kafkago.InvalidProducerEpoch) {
		t.Errorf("the late batch: %v, %+v, want InvalidProducerEpoch", err, response)
	}
	wantSequences(t, readTopic(t, topic, 2, 20*time.Second), []sinks.Message{first, second})
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
