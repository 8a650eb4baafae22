package kafka

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/sinktest"
)

// numbered returns n messages that go round the keys.
func numbered(topic string, n, keys int) []sinks.Message {
	messages := make([]sinks.Message, n)
	for i := range messages {
		messages[i] = publishable(topic, int64(i), fmt.Appendf(nil, "key-%d", i%keys))
	}
	return messages
}

func batchesOf(messages []sinks.Message, size int) (batches [][]sinks.Message) {
	for ; len(messages) > size; messages = messages[size:] {
		batches = append(batches, messages[:size])
	}
	return append(batches, messages)
}

// through has the publisher reach its brokers by the proxy.
func through(p *Publisher, proxy *sinktest.Proxy) {
	dial := p.cluster.transport.Dial
	p.cluster.transport.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dial(ctx, network, proxy.Address)
	}
}

// wantFirstInOrder expects all messages, each key's in the order of their first
// occurrences, and returns how many are there again.
func wantFirstInOrder(t *testing.T, topic string, n int) (duplicates int) {
	t.Helper()
	records := readTopic(t, topic, n, 60*time.Second)
	highest, seen := map[string]int64{}, map[int64]bool{}
	for _, r := range records {
		sequence := parseSequence(t, r)
		if seen[sequence] {
			continue
		}
		seen[sequence] = true
		if before, ok := highest[string(r.key)]; ok && sequence < before {
			t.Fatalf("key %s: %d came after %d", r.key, sequence, before)
		}
		highest[string(r.key)] = sequence
	}
	if len(seen) != n {
		t.Errorf("%d different messages, want %d", len(seen), n)
	}
	return len(records) - n
}

// TestStreamUnderFaults has 1,000 small batches in flight while one request of ten
// breaks, before the broker got it or before its answer came, and now and then nobody
// connects after that.
func TestStreamUnderFaults(t *testing.T) {
	p := open(t, testConfig(t))
	f := &faults{every: 10}
	f.inject(p)
	topic := newTopic(t, 3)
	messages := numbered(topic, 5000, 31)
	outages := make(chan struct{})
	go func() {
		defer close(outages)
		for range 5 { // not for ever: what is sent again last would meet each of them
			f.downAfter.Store(true)
			f.lose.Store(1)
			time.Sleep(150 * time.Millisecond)
			f.down.Store(false)
			time.Sleep(50 * time.Millisecond)
		}
		f.downAfter.Store(false)
		f.down.Store(false)
	}()
	failed := sinktest.Relay(t, p.Stream(sinks.Window{Messages: 2000}), batchesOf(messages, 5), 0)
	<-outages
	duplicates := wantFirstInOrder(t, topic, len(messages))
	t.Logf("%d responses lost, %d messages failed, %d duplicates", f.lost.Load(), failed, duplicates)
	if f.lost.Load() == 0 {
		t.Error("nothing was lost: the test shows nothing")
	}
}

// TestStreamThroughACutNetwork breaks every connection many times.
func TestStreamThroughACutNetwork(t *testing.T) {
	p := open(t, testConfig(t))
	proxy := sinktest.NewProxy(t, brokers(t)[0], time.Millisecond)
	through(p, proxy)
	topic := newTopic(t, 3)
	messages := numbered(topic, 5000, 31)
	cut := make(chan struct{})
	go func() {
		defer close(cut)
		for range 60 { // not for ever: a busy machine would only connect
			time.Sleep(15 * time.Millisecond)
			proxy.Cut()
		}
	}()
	failed := sinktest.Relay(t, p.Stream(sinks.Window{Messages: 200}), batchesOf(messages, 5), 0)
	<-cut
	t.Logf("%d messages failed, %d duplicates", failed, wantFirstInOrder(t, topic, len(messages)))
}

// TestStreamRefusedByBroker has messages that are too large for the topic, which the
// broker says without naming them, in the middle of many batches in flight.
func TestStreamRefusedByBroker(t *testing.T) {
	p := open(t, testConfig(t))
	topic := newTopic(t, 1, kafkago.ConfigEntry{ConfigName: "max.message.bytes", ConfigValue: "50000"})
	messages := numbered(topic, 2000, 4)
	const refused = 1000 // of key-0
	messages[refused].Payload = bytes.Repeat([]byte("x"), 60_000)
	stream := p.Stream(sinks.Window{})
	var receipts []sinks.Receipt
	for _, batch := range batchesOf(messages, 10) {
		receipts = append(receipts, stream.Send(t.Context(), batch))
	}
	var want, behind []sinks.Message
	for i, m := range messages {
		results := receipts[i/10].Results()
		var err error
		if results != nil {
			err = results[i%10]
		}
		switch {
		case i == refused:
			wantResult(t, results, i%10, sinks.ScopeMessage, true, "message_too_large", "max.message.bytes")
		case i > refused && i%4 == 0:
			behind = append(behind, m)
			if sinks.ScopeOf(err) != sinks.ScopeSkipped {
				t.Fatalf("message %d, behind the refused one: %v", i, err)
			}
		case err != nil:
			t.Fatalf("message %d: %v", i, err)
		default:
			want = append(want, m)
		}
	}
	wantSequences(t, readTopic(t, topic, len(want), 20*time.Second), want)
	stream.Resume(behind)
	if results := stream.Send(t.Context(), behind).Results(); results != nil {
		t.Fatal(results)
	}
	wantSequences(t, readTopic(t, topic, len(want)+len(behind), 20*time.Second), append(want, behind...))
}

// TestStreamBlocks has a broker that answers nothing for a while: Send blocks once the
// window is full, and returns when its context ends.
func TestStreamBlocks(t *testing.T) {
	p := open(t, testConfig(t))
	proxy := sinktest.NewProxy(t, brokers(t)[0], 0)
	through(p, proxy)
	topic := newTopic(t, 1)
	messages := numbered(topic, 60, 6)
	if results := p.Publish(t.Context(), messages[:10]); results != nil {
		t.Fatal(results)
	}
	proxy.Hold()
	stream := p.Stream(sinks.Window{Messages: 20})
	first := stream.Send(t.Context(), messages[10:20])
	second := stream.Send(t.Context(), messages[20:30])
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	third := stream.Send(ctx, messages[30:40])
	if took := time.Since(began); ctx.Err() == nil || took > 5*time.Second {
		t.Errorf("Send returned after %s, its context says %v", took, ctx.Err())
	}
	wantResult(t, third.Results(), 0, sinks.ScopeSink, false, "timeout", "in time")
	blocked := make(chan sinks.Receipt)
	go func() { blocked <- stream.Send(t.Context(), messages[40:50]) }()
	select {
	case <-blocked:
		t.Fatal("Send does not block although the window is full")
	case <-time.After(100 * time.Millisecond):
	}
	proxy.Pass()
	fourth := <-blocked
	for i, receipt := range []sinks.Receipt{first, second} {
		if results := receipt.Results(); results != nil {
			t.Errorf("batch %d: %v", i, results)
		}
	}
	wantResult(t, fourth.Results(), 0, sinks.ScopeSkipped, false, "skipped", "earlier") // behind the third
	stream.Resume(messages[30:40])
	for _, batch := range batchesOf(messages[30:], 10) {
		if results := stream.Send(t.Context(), batch).Results(); results != nil {
			t.Error(results)
		}
	}
	wantSequences(t, readTopic(t, topic, len(messages), 20*time.Second), messages)
}

// TestStreamKeepsPartitions has a topic get more partitions while a batch is in flight:
// what comes next of its keys waits for it, since it may go to another partition.
func TestStreamKeepsPartitions(t *testing.T) {
	p := open(t, testConfig(t))
	proxy := sinktest.NewProxy(t, brokers(t)[0], 0)
	through(p, proxy)
	topic := newTopic(t, 2)
	messages := numbered(topic, 20, 6)
	if results := p.Publish(t.Context(), messages[:6]); results != nil {
		t.Fatal(results)
	}
	set := func(l *layout) {
		p.layouts.mu.Lock()
		defer p.layouts.mu.Unlock()
		p.layouts.topics[topic] = l
	}
	now := p.layouts.of(topic)
	before := *now
	before.leaders, before.led = now.leaders[:1], now.led[:1]
	set(&before)
	proxy.Hold()
	stream := p.Stream(sinks.Window{})
	first := stream.Send(t.Context(), messages[6:12])
	set(now)
	sent := make(chan sinks.Receipt)
	go func() { sent <- stream.Send(t.Context(), messages[12:]) }()
	select {
	case <-sent:
		t.Error("a key is sent to two partitions at a time")
		return
	case <-time.After(100 * time.Millisecond):
	}
	proxy.Pass()
	second := <-sent
	select {
	case <-first.Done():
	default:
		t.Error("the second batch was sent before the first was answered")
	}
	if results := append(first.Results(), second.Results()...); results != nil {
		t.Error(results)
	}
	readTopic(t, topic, len(messages), 20*time.Second)
}

func TestBrokenKeys(t *testing.T) {
	var b brokenKeys
	k, other := orderKey{"orders", "k"}, orderKey{"orders", "other"}
	want := func(key orderKey, behind string) {
		t.Helper()
		got := ""
		for position := range int64(10) {
			if b.behind(key, position) {
				got += fmt.Sprint(position)
			}
		}
		if got != behind {
			t.Errorf("behind are %q, want %q", got, behind)
		}
	}
	b.add(k, 3)
	want(k, "456789")
	want(other, "")
	b.resume(k, 6)
	b.resume(other, 6)
	want(k, "45")
	b.add(k, 2) // known late
	want(k, "345")
	b.add(k, 7)
	want(k, "34589")
	b.forget(5)
	want(k, "34589")
	b.forget(6)
	want(k, "89")
	b.resume(k, 10)
	b.forget(10)
	if len(b.keys) > 0 || len(b.resumed) > 0 || b.any.Load() {
		t.Errorf("left are %v and %v", b.keys, b.resumed)
	}
}

// TestStreamOfAnExpiredPart has a batch expire while a request with it and with the next
// one is under way: what is acknowledged of the next, behind what may be sent again,
// fails.
func TestStreamOfAnExpiredPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := Defaults()
		config.Brokers = []string{"127.0.0.1:1"}
		p := open(t, config)
		s := p.Stream(sinks.Window{}).(*stream)
		ctx, cancel := context.WithCancel(t.Context())
		part := func(ctx context.Context, messages []sinks.Message) *segment {
			c := &call{stream: s, ctx: ctx, messages: messages, done: make(chan struct{})}
			share, _ := s.window.Enter(ctx, messages)
			s.begin(c, share)
			indexes := make([]int32, len(messages))
			for i := range indexes {
				indexes[i] = int32(i)
			}
			c.segments = []*segment{{call: c, indexes: indexes}}
			return c.segments[0]
		}
		messages := numbered("orders", 4, 2)
		first, second := part(ctx, messages[:1]), part(t.Context(), messages[1:])
		cancel()
		<-first.call.Done()
		first.acknowledge(1, 1)
		second.acknowledge(3, 3)
		wantResult(t, first.call.Results(), 0, sinks.ScopeSink, false, "cancelled", "in time")
		results := second.call.Results()
		wantResult(t, results, 1, sinks.ScopeSkipped, false, "skipped", "earlier")
		if results[0] != nil || results[2] != nil {
			t.Errorf("the other key: %v, %v", results[0], results[2])
		}
	})
}
