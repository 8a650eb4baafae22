package kafka

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/sinks"
)

// forger answers requests in the broker's place, with codes that a real one
// cannot be made to answer when a test wants it to.
type forger struct {
	topic string

	mu sync.Mutex
	// produce are the codes for the requests to come, each for one; the broker
	// does not get them. always is for all others, unless it is 0.
	produce []kafkago.Error
	always  kafkago.Error
	// after are codes that replace the broker's answer: it has the batch.
	after []kafkago.Error
	// initialize is the answer to all requests for a producer id, unless it is 0.
	initialize kafkago.Error
	// silent is a topic whose requests vanish.
	silent string
	// corrupt is what the broker calls corrupt.
	corrupt string
	// requests counts those for a producer id.
	requests int
}

const (
	apiProduce        = 0
	apiInitProducerID = 22
)

func (f *forger) inject(p *Publisher) {
	dial := p.cluster.transport.Dial
	p.cluster.transport.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &forgedConn{Conn: conn, forger: f}, nil
	}
}

type forgedConn struct {
	net.Conn
	forger *forger

	mu sync.Mutex
	// forged waits to be read.
	forged []byte
	// replace is the code for the broker's next answer.
	replace kafkago.Error
}

// answer returns what to answer to a request, and the code for the broker's own
// answer otherwise.
func (f *forger) answer(request []byte) (forged []byte, replace kafkago.Error) {
	if len(request) < 12 || request[0] != 0 {
		return nil, 0
	}
	api, version := binary.BigEndian.Uint16(request[4:]), binary.BigEndian.Uint16(request[6:])
	f.mu.Lock()
	defer f.mu.Unlock()
	body := append([]byte(nil), request[8:12]...) // the correlation id
	switch api {
	case apiInitProducerID:
		f.requests++
		if f.initialize == 0 {
			return nil, 0
		}
		if version >= 2 {
			body = append(body, 0)
		}
		body = append(body, 0, 0, 0, 0)
		body = binary.BigEndian.AppendUint16(body, uint16(f.initialize))
		body = append(body, bytes.Repeat([]byte{0xff}, 10)...)
		if version >= 2 {
			body = append(body, 0)
		}
	case apiProduce:
		if f.silent != "" && bytes.Contains(request, []byte(f.silent)) {
			return []byte{}, 0
		}
		code := f.always
		switch {
		case f.corrupt != "" && bytes.Contains(request, []byte(f.corrupt)):
			code = kafkago.InvalidMessage
		case len(f.produce) > 0:
			code, f.produce = f.produce[0], f.produce[1:]
		case len(f.after) > 0:
			replace, f.after = f.after[0], f.after[1:]
			return nil, replace
		}
		if code == 0 {
			return nil, 0
		}
		body = append(body, 0, 0, 0, 1)
		body = binary.BigEndian.AppendUint16(body, uint16(len(f.topic)))
		body = append(body, f.topic...)
		body = append(body, 0, 0, 0, 1, 0, 0, 0, 0)
		body = binary.BigEndian.AppendUint16(body, uint16(code))
		body = append(body, bytes.Repeat([]byte{0xff}, 24)...)
		if version >= 8 {
			body = append(body, 0, 0, 0, 0, 0xff, 0xff)
		}
		body = append(body, 0, 0, 0, 0)
	default:
		return nil, 0
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...), 0
}

func (c *forgedConn) Write(p []byte) (int, error) {
	forged, replace := c.forger.answer(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replace = replace
	if forged == nil {
		return c.Conn.Write(p)
	}
	if len(forged) == 0 {
		return len(p), nil
	}
	c.forged = append(c.forged, forged...)
	// Wake who reads the broker's silence.
	_ = c.Conn.SetReadDeadline(time.Unix(1, 0))
	return len(p), nil
}

func (c *forgedConn) Read(p []byte) (int, error) {
	for {
		c.mu.Lock()
		if len(c.forged) > 0 {
			n := copy(p, c.forged)
			c.forged = c.forged[n:]
			if len(c.forged) == 0 {
				_ = c.Conn.SetReadDeadline(time.Time{})
			}
			c.mu.Unlock()
			return n, nil
		}
		c.mu.Unlock()
		n, err := c.Conn.Read(p)
		c.mu.Lock()
		forged := len(c.forged) > 0
		if n > 0 && c.replace != 0 {
			// The code stands behind the topic's name, the partitions' number and
			// the partition.
			if at := bytes.Index(p[:n], []byte(c.forger.topic)); at >= 0 {
				binary.BigEndian.PutUint16(p[at+len(c.forger.topic)+8:], uint16(c.replace))
				c.replace = 0
			}
		}
		c.mu.Unlock()
		if n == 0 && err != nil && forged {
			continue
		}
		return n, err
	}
}

// TestAnswers has the broker's place answer each code once, before or after the
// broker has the batch: whatever is said, the batch is there once when Publish
// says so.
func TestAnswers(t *testing.T) {
	for _, test := range []struct {
		before, after kafkago.Error
		// renewed: the writer gets another producer id.
		renewed bool
	}{
		{before: kafkago.UnknownTopicOrPartition},
		{before: kafkago.LeaderNotAvailable},
		{before: kafkago.NotLeaderForPartition},
		{before: kafkago.BrokerNotAvailable},
		{before: kafkago.ReplicaNotAvailable},
		{before: kafkago.NotEnoughReplicas},
		{before: kafkago.FencedLeaderEpoch},
		{before: kafkago.UnknownTopicID},
		{before: kafkago.OutOfOrderSequenceNumber, renewed: true},
		{before: kafkago.DuplicateSequenceNumber, renewed: true},
		{before: kafkago.InvalidProducerEpoch, renewed: true},
		{before: kafkago.InvalidProducerIDMapping, renewed: true},
		{before: kafkago.UnknownProducerId, renewed: true},
		{before: kafkago.ProducerFenced, renewed: true},
		{after: kafkago.RequestTimedOut},
		{after: kafkago.NetworkException},
		{after: kafkago.NotEnoughReplicasAfterAppend},
		{after: kafkago.KafkaStorageError},
		// The connection broke first, so that these may mean the batch itself.
		{after: kafkago.DuplicateSequenceNumber, renewed: true},
	} {
		t.Run(fmt.Sprintf("%d before, %d after", test.before, test.after), func(t *testing.T) {
			t.Parallel()
			p := open(t, testConfig(t))
			topic := newTopic(t, 1)
			f := &forger{topic: topic}
			f.inject(p)
			var messages []sinks.Message
			for n := range 30 {
				messages = append(messages, publishable(topic, int64(n), fmt.Appendf(nil, "key-%d", n%3)))
			}
			if results := p.Publish(t.Context(), messages[:10]); results != nil {
				t.Fatal(results[0])
			}
			was := p.writer(topic, 0).producer
			f.mu.Lock()
			if test.before != 0 {
				f.produce = append(f.produce, test.before)
			}
			if test.after != 0 {
				f.after = append(f.after, test.after)
			}
			f.mu.Unlock()
			for from := 10; from < len(messages); from += 10 {
				if results := p.Publish(t.Context(), messages[from:from+10]); results != nil {
					t.Fatal(results[0])
				}
			}
			if now := p.writer(topic, 0).producer; (now != was) != test.renewed {
				t.Errorf("producer %+v, was %+v, want another: %t", now, was, test.renewed)
			}
			if test.after == kafkago.DuplicateSequenceNumber {
				return // the broker had it, and the sink could not know: it is there twice
			}
			wantSequences(t, readTopic(t, topic, len(messages), 20*time.Second), messages)
		})
	}
}

// TestStubbornAnswers has codes that do not go away: the call ends in time, with
// what the code is about, and everything goes on when they are over.
func TestStubbornAnswers(t *testing.T) {
	for _, test := range []struct {
		code      kafkago.Error
		scope     sinks.Scope
		permanent bool
		reason    string
	}{
		{kafkago.Unknown, sinks.ScopePartition, false, "broker"},
		{kafkago.Error(12345), sinks.ScopePartition, false, "broker"},
		{kafkago.InvalidMessage, sinks.ScopePartition, false, "invalid_message"},
		{kafkago.InvalidTimestamp, sinks.ScopeSink, false, "invalid_timestamp"},
		{kafkago.UnsupportedForMessageFormat, sinks.ScopeDestination, false, "unsupported"},
		{kafkago.UnsupportedCompressionType, sinks.ScopeDestination, false, "compression"},
		{kafkago.LeaderNotAvailable, sinks.ScopePartition, false, "no_leader"},
		{kafkago.NotLeaderForPartition, sinks.ScopePartition, false, "not_leader"},
		{kafkago.NotEnoughReplicas, sinks.ScopePartition, false, "not_enough_replicas"},
		{kafkago.UnknownTopicOrPartition, sinks.ScopeDestination, false, "unknown_topic"},
		{kafkago.TopicAuthorizationFailed, sinks.ScopeDestination, false, "unauthorized"},
		{kafkago.ClusterAuthorizationFailed, sinks.ScopeDestination, false, "unauthorized"},
		{kafkago.OutOfOrderSequenceNumber, sinks.ScopePartition, false, "producer_id"},
		{kafkago.InvalidTopic, sinks.ScopeMessage, true, "invalid_topic"},
		{kafkago.InvalidRequest, sinks.ScopeSink, false, "unsupported"},
	} {
		t.Run(fmt.Sprintf("%d", test.code), func(t *testing.T) {
			t.Parallel()
			p := open(t, testConfig(t))
			topic := newTopic(t, 1)
			f := &forger{topic: topic}
			f.inject(p)
			messages := []sinks.Message{publishable(topic, 1, []byte("a")), publishable(topic, 2, []byte("a")), publishable(topic, 3, []byte("b"))}
			f.mu.Lock()
			f.always = test.code
			f.mu.Unlock()
			results := p.Publish(t.Context(), messages)
			wantResult(t, results, 0, test.scope, test.permanent, test.reason, topic)
			if test.scope == sinks.ScopeMessage {
				wantResult(t, results, 1, sinks.ScopeSkipped, false, "skipped", "")
			}
			wantResult(t, results, 2, test.scope, test.permanent, test.reason, topic)
			f.mu.Lock()
			f.always = 0
			f.mu.Unlock()
			if results := p.Publish(t.Context(), messages); results != nil {
				t.Fatalf("afterwards: %v", results[0])
			}
			wantSequences(t, readTopic(t, topic, len(messages), 20*time.Second), messages)
		})
	}
}

// TestCorruptRecordWithoutKey has a broker call batches corrupt, as those before
// 2.4 do for a null key in a compacted topic: the record without key is found,
// and those with keys are no worse for it.
func TestCorruptRecordWithoutKey(t *testing.T) {
	p := open(t, testConfig(t))
	topic := newTopic(t, 1)
	f := &forger{topic: topic, corrupt: "no key"}
	f.inject(p)
	messages := []sinks.Message{publishable(topic, 1, []byte("a")), publishable(topic, 2, nil), publishable(topic, 3, []byte("b"))}
	messages[1].Payload = []byte("no key")
	results := p.Publish(t.Context(), messages)
	wantResult(t, results, 1, sinks.ScopeMessage, false, "invalid_message", topic)
	if results[0] != nil || results[2] != nil {
		t.Errorf("records with keys: %v, %v", results[0], results[2])
	}
	wantSequences(t, readTopic(t, topic, 2, 20*time.Second), []sinks.Message{messages[0], messages[2]})
}

// TestClocksApart has a topic that takes no record of a moment ago, as one whose
// broker's clock is elsewhere: nothing counts against the messages, and they go
// when it is over.
func TestClocksApart(t *testing.T) {
	p := open(t, testConfig(t))
	topic := newTopic(t, 1, kafkago.ConfigEntry{ConfigName: "message.timestamp.before.max.ms", ConfigValue: "0"})
	m := publishable(topic, 1, []byte("k"))
	var results []error
	for range 100 { // within one millisecond it is taken
		if results = p.Publish(t.Context(), []sinks.Message{m}); results != nil {
			break
		}
	}
	wantResult(t, results, 0, sinks.ScopeSink, false, "invalid_timestamp", "message.timestamp.after.max.ms")
	setTopic(t, topic, "message.timestamp.before.max.ms", "3600000")
	eventually(t, 10*time.Second, "the message is not taken with the setting raised", func() bool {
		return p.Publish(t.Context(), []sinks.Message{m}) == nil
	})
}

// TestNotAllowedToBeIdempotent has a broker that gives no producer id: the sink
// says so once, goes on without, and with one when it is allowed.
func TestNotAllowedToBeIdempotent(t *testing.T) {
	var log lockedBuffer
	p, err := New(testConfig(t), sinks.Envelope{}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	topic := newTopic(t, 1)
	f := &forger{topic: topic, initialize: kafkago.ClusterAuthorizationFailed}
	f.inject(p)
	var messages []sinks.Message
	publish := func() {
		t.Helper()
		m := publishable(topic, int64(len(messages)), []byte("k"))
		messages = append(messages, m)
		if results := p.Publish(t.Context(), []sinks.Message{m}); results != nil {
			t.Fatal(results[0])
		}
	}
	publish()
	publish()
	if f.requests != 1 {
		t.Errorf("%d requests for a producer id, want 1", f.requests)
	}
	if n := strings.Count(log.String(), "does not let this user produce idempotently"); n != 1 {
		t.Errorf("%d lines about it, want 1:\n%s", n, log.String())
	}
	p.producers.mu.Lock()
	p.producers.refusedUntil = time.Now() // a minute later
	p.producers.mu.Unlock()
	publish()
	if f.requests != 2 || strings.Count(log.String(), "does not let this user produce idempotently") != 1 {
		t.Errorf("%d requests for a producer id, want 2 and no other line:\n%s", f.requests, log.String())
	}
	p.producers.mu.Lock()
	p.producers.refusedUntil = time.Now()
	p.producers.mu.Unlock()
	f.mu.Lock()
	f.initialize = 0
	f.mu.Unlock()
	publish()
	if p.writer(topic, 0).producer == noProducer || !strings.Contains(log.String(), "lets this user produce idempotently now") {
		t.Errorf("not idempotent although it is allowed:\n%s", log.String())
	}
	// A broker before 2.8 can also refuse the batch itself.
	f.mu.Lock()
	f.produce = []kafkago.Error{kafkago.ClusterAuthorizationFailed}
	f.mu.Unlock()
	publish()
	if p.writer(topic, 0).producer != noProducer {
		t.Error("still idempotent after the broker refused the batch for it")
	}
	wantSequences(t, readTopic(t, topic, len(messages), 20*time.Second), messages)
}

func TestIdempotentOff(t *testing.T) {
	config := testConfig(t)
	config.Idempotent = false
	p := open(t, config)
	topic := newTopic(t, 1)
	f := &forger{topic: topic, initialize: kafkago.Unknown}
	f.inject(p)
	m := publishable(topic, 1, []byte("k"))
	if results := p.Publish(t.Context(), []sinks.Message{m}); results != nil {
		t.Fatal(results[0])
	}
	if f.requests != 0 {
		t.Errorf("%d requests for a producer id, want none", f.requests)
	}
	wantSequences(t, readTopic(t, topic, 1, 20*time.Second), []sinks.Message{m})
}

// TestProducerIDFails has a broker that cannot give a producer id for now, which
// is no reason to go on without.
func TestProducerIDFails(t *testing.T) {
	p := open(t, testConfig(t))
	topic := newTopic(t, 1)
	f := &forger{topic: topic, initialize: kafkago.GroupCoordinatorNotAvailable}
	f.inject(p)
	m := publishable(topic, 1, []byte("k"))
	wantResult(t, p.Publish(t.Context(), []sinks.Message{m}), 0, sinks.ScopeSink, false, "broker", topic)
	f.mu.Lock()
	f.initialize = 0
	f.mu.Unlock()
	if results := p.Publish(t.Context(), []sinks.Message{m}); results != nil {
		t.Fatal(results[0])
	}
	if p.writer(topic, 0).producer == noProducer {
		t.Error("not idempotent")
	}
	wantSequences(t, readTopic(t, topic, 1, 20*time.Second), []sinks.Message{m})
}

// TestTroubleIsItsOwnLanes has one partition in trouble when the context ends:
// what is unresolved concerns that partition and not the sink.
func TestTroubleIsItsOwnLanes(t *testing.T) {
	p := open(t, testConfig(t))
	topic := newTopic(t, 1)
	f := &forger{topic: topic, always: kafkago.NotEnoughReplicas}
	f.inject(p)
	ctx, cancel := context.WithTimeout(t.Context(), grace/2)
	defer cancel()
	results := p.Publish(ctx, []sinks.Message{publishable(topic, 1, []byte("a"))})
	wantResult(t, results, 0, sinks.ScopePartition, false, "not_enough_replicas", "not acknowledged in time")
	if !errors.Is(results[0], context.DeadlineExceeded) {
		t.Errorf("%v does not say that the context ended", results[0])
	}
}

// TestSilenceOfOneBroker has requests for one topic vanish, as when the broker that
// leads it is frozen, while another topic's are answered.
func TestSilenceOfOneBroker(t *testing.T) {
	p := open(t, testConfig(t))
	silent, other := newTopic(t, 1), newTopic(t, 1)
	f := &forger{topic: other, silent: silent}
	f.inject(p)
	publish := func(topics ...string) []error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var messages []sinks.Message
		for i, topic := range topics {
			messages = append(messages, publishable(topic, int64(i), []byte("k")))
		}
		return p.Publish(ctx, messages)
	}
	results := publish(silent, other)
	wantResult(t, results, 0, sinks.ScopePartition, false, "timeout", "not acknowledged in time")
	if results[1] != nil {
		t.Errorf("the other topic: %v", results[1])
	}
	// Alone it says nothing about the others.
	wantResult(t, publish(silent), 0, sinks.ScopeSink, false, "timeout", "not acknowledged in time")
}

// lockedBuffer is a log.
type lockedBuffer struct {
	mu sync.Mutex
	strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Builder.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Builder.String()
}
