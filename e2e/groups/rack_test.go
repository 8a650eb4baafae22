package groups

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/e2e/servers"
)

// A partition is read from the replica in the consumer's rack, and from the
// leader when that one is away.
func TestRack(t *testing.T) {
	t.Parallel()
	cluster, err := servers.StartKafkaCluster(t.Context(), servers.KafkaClusterOptions{Properties: map[string]string{
		"replica.selector.class": "org.apache.kafka.common.replica.RackAwareReplicaSelector",
	}})
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, cluster)
	s := newStageOn(t, cluster.Brokers())
	if err := cluster.CreateTopic(t.Context(), s.topic, 1, nil); err != nil {
		t.Fatal(err)
	}
	leader, err := cluster.Leader(t.Context(), s.topic, 0)
	if err != nil {
		t.Fatal(err)
	}
	near := cluster.Node(leader.ID%3 + 1)
	log := newLog(t)
	config := s.config(log)
	config.Brokers = []string{leader.Address()}
	config.Rack = near.Rack()
	var nearby atomic.Int64
	config.Dialer = &kafkago.Dialer{DialFunc: func(ctx context.Context, network, address string) (net.Conn, error) {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, network, address)
		if err == nil && address == near.Address() {
			return &countingConn{Conn: conn, read: &nearby}, nil
		}
		return conn, err
	}}
	_, stop := run(t, config)
	s.publish(0, 10, 1)
	await(t, "all messages are processed", func() bool { return s.effects() >= 10 })
	await(t, "the replica nearby is read", func() bool { return nearby.Load() > 0 })
	before := nearby.Load()
	s.publish(10, 500, 1)
	await(t, "all messages are processed", func() bool { return s.effects() >= 500 })
	if got := nearby.Load() - before; got < 490*30 {
		t.Errorf("%d bytes of 490 messages came from nearby", got)
	}
	near.Kill()
	s.publish(500, 600, 1)
	await(t, "all messages are processed without the replica", func() bool { return s.effects() >= 600 })
	stop()
	s.checkOnce(600)
}

type countingConn struct {
	net.Conn
	read *atomic.Int64
}

func (c *countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	return n, err
}
