package kafka

import (
	"context"
	"encoding/binary"
	"net"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/protocol/rawproduce"

	"github.com/outboxrelay/relay/sinks"
)

// eavesdropper notes which topics a publisher asks for.
type eavesdropper struct {
	mu sync.Mutex
	// all counts requests for all topics, none those for the brokers only.
	all, none int
	topics    map[string]int
}

func (e *eavesdropper) inject(p *Publisher) {
	dial := p.cluster.transport.Dial
	p.cluster.transport.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &heardConn{Conn: conn, by: e}, nil
	}
}

type heardConn struct {
	net.Conn
	by *eavesdropper
}

const apiMetadata = 3

func (c *heardConn) Write(request []byte) (int, error) {
	if len(request) >= 14 && binary.BigEndian.Uint16(request[4:]) == apiMetadata {
		client := int(binary.BigEndian.Uint16(request[12:]))
		c.by.hear(request[14+client:])
	}
	return c.Conn.Write(request)
}

func (e *eavesdropper) hear(body []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := int32(binary.BigEndian.Uint32(body))
	switch {
	case n < 0:
		e.all++
	case n == 0:
		e.none++
	}
	for body = body[4:]; n > 0; n-- {
		length := binary.BigEndian.Uint16(body)
		if e.topics == nil {
			e.topics = map[string]int{}
		}
		e.topics[string(body[2:2+length])]++
		body = body[2+length:]
	}
}

func (e *eavesdropper) counts() (all, none, topics int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, n := range e.topics {
		topics += n
	}
	return e.all, e.none, topics
}

// TestOnlyTopicsInUseAreAskedFor listens to what is asked while messages are sent,
// and while nothing is: a cluster can have thousands of topics.
func TestOnlyTopicsInUseAreAskedFor(t *testing.T) {
	p := open(t, testConfig(t))
	e := &eavesdropper{}
	e.inject(p)
	topic := newTopic(t, 2)
	publish := func() {
		t.Helper()
		if results := p.Publish(t.Context(), []sinks.Message{publishable(topic, 1, []byte("k"))}); results != nil {
			t.Fatal(results[0])
		}
	}
	publish()
	eventually(t, 20*time.Second, "the layout in use is not asked for again", func() bool {
		publish()
		_, _, asked := e.counts()
		return asked >= 3
	})
	// A refresh may be under way still.
	eventually(t, 10*time.Second, "a refresh does not end", func() bool { return !p.layouts.refreshing.Load() })
	_, none, asked := e.counts()
	eventually(t, 20*time.Second, "kafka-go does not ask for the brokers", func() bool {
		_, now, _ := e.counts()
		return now >= none+3
	})
	all, _, now := e.counts()
	if all != 0 {
		t.Errorf("%d requests for all topics of the cluster", all)
	}
	if now != asked {
		t.Errorf("%d requests for topics while nothing was sent", now-asked)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.topics) != 1 || e.topics[topic] == 0 {
		t.Errorf("asked for %v, want topic %s only", e.topics, topic)
	}
}

// TestRequestsAreKafkaGos compares the fields of requests with those of kafka-go's
// own, by whose place it writes them.
func TestRequestsAreKafkaGos(t *testing.T) {
	for _, test := range []struct{ ours, theirs any }{
		{metadataRequest{}, metadata.Request{}},
		{produceRequest{}, rawproduce.Request{}},
	} {
		ours, theirs := reflect.TypeOf(test.ours), reflect.TypeOf(test.theirs)
		for i := range theirs.NumField() {
			if a, b := ours.Field(i), theirs.Field(i); a.Name != b.Name || a.Type != b.Type || a.Offset != b.Offset {
				t.Errorf("%s: field %d is %s %s, kafka-go has %s %s", ours, i, a.Name, a.Type, b.Name, b.Type)
			}
		}
	}
}

// TestOpenPartitions has messages without key avoid what has no leader, and what
// took nothing.
func TestOpenPartitions(t *testing.T) {
	p := open(t, Config{Brokers: []string{"127.0.0.1:1"}, MaxMessageBytes: 10_000})
	layout := &layout{leaders: []int32{1, noLeader, 2, 3}, led: []int32{0, 2, 3}}
	want := func(partitions ...int32) {
		t.Helper()
		if got := p.open("t", layout); !slices.Equal(got, partitions) {
			t.Errorf("partitions %v, want %v", got, partitions)
		}
	}
	want(0, 2, 3)
	p.avoided.add(partitionName{"t", 2})
	p.avoided.add(partitionName{"other", 3})
	want(0, 3)
	p.avoided.add(partitionName{"t", 0})
	p.avoided.add(partitionName{"t", 3})
	want(0, 2, 3) // none is better than another
	p.avoided.remove(partitionName{"t", 2})
	want(2)
	layout.led = nil
	want(0, 1, 2, 3)
}
