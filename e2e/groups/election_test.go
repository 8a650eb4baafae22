package groups

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/e2e/servers"
)

// After an unclean election the partition has other messages where it has lost
// some, and is longer than the consumer's offset again: none of them is passed
// over.
func TestUncleanElection(t *testing.T) {
	t.Parallel()
	cluster, err := servers.StartKafkaCluster(t.Context(), servers.KafkaClusterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, cluster)
	s := newStageOn(t, cluster.Brokers())
	err = cluster.CreateTopic(t.Context(), s.topic, 1, map[string]string{"min.insync.replicas": "1", "unclean.leader.election.enable": "true"})
	if err != nil {
		t.Fatal(err)
	}
	log := newLog(t)
	config := s.config(log)
	config.Brokers = cluster.Brokers()
	config.SessionTimeout = time.Minute // the group's coordinator may be away too
	var away atomic.Bool
	config.Dialer = &kafkago.Dialer{DialFunc: func(ctx context.Context, network, address string) (net.Conn, error) {
		if away.Load() {
			return nil, errors.New("the network is away")
		}
		var dialer net.Dialer
		return dialer.DialContext(ctx, network, address)
	}}
	_, stop := run(t, config)
	s.publish(0, 10, 1)
	await(t, "the first messages are processed", func() bool { return s.effects() == 10 })
	leader, err := cluster.Leader(t.Context(), s.topic, 0)
	if err != nil {
		t.Fatal(err)
	}
	var others []*servers.KafkaNode
	for _, node := range cluster.Nodes() {
		if node != leader {
			others = append(others, node)
			node.Kill()
		}
	}
	await(t, "the leader is alone", func() bool {
		response, err := s.client.Metadata(t.Context(), &kafkago.MetadataRequest{Addr: kafkago.TCP(leader.Address()), Topics: []string{s.topic}})
		return err == nil && len(response.Topics) == 1 && len(response.Topics[0].Partitions) == 1 && len(response.Topics[0].Partitions[0].Isr) == 1
	})
	s.publish(10, 20, 1)
	await(t, "what is to be lost is processed", func() bool { return s.effects() == 20 })
	away.Store(true) // it does not see the partition while that is shorter
	leader.Kill()
	for _, node := range others {
		if err := node.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "another one leads", func() bool {
		now, err := cluster.Leader(t.Context(), s.topic, 0)
		return err == nil && now != nil && now != leader
	})
	s.publish(20, 50, 1)
	away.Store(false)
	await(t, "all messages are processed", func() bool { return s.effects() >= 50 })
	stop()
	s.checkOnce(50)
	if len(log.lines("the partition lost its end in an unclean election")) == 0 {
		t.Error("nothing is said of it")
	}
}
