package servers

import (
	"context"
	"errors"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
)

func TestKafkaCluster(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c, err := StartKafkaCluster(ctx, KafkaClusterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	CleanUp(t, c)
	client, done := kafkaClient(c.Brokers()...)
	t.Cleanup(done)
	if err := c.CreateTopic(ctx, "orders", 3, nil); err != nil {
		t.Fatal(err)
	}
	replicas := func(n int) {
		t.Helper()
		if err := c.AwaitReplicas(ctx, n, "orders"); err != nil {
			t.Fatal(err)
		}
	}
	// write appends to partition 0, again and again until it succeeds or fails
	// for the reason that is wanted.
	write := func(want error) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(pollInterval) {
			attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
			response, err := client.Produce(attempt, &kafka.ProduceRequest{
				Topic: "orders", RequiredAcks: kafka.RequireAll,
				Records: kafka.NewRecordReader(kafka.Record{Value: kafka.NewBytes([]byte("x"))}),
			})
			cancel()
			if err == nil {
				err = response.Error
			}
			if errors.Is(err, want) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("writing gives %v, want %v", err, want)
			}
		}
	}
	write(nil)
	leader, err := c.Leader(ctx, "orders", 0)
	if err != nil {
		t.Fatal(err)
	}
	leader.Kill()
	write(nil) // another leads
	second, err := c.Leader(ctx, "orders", 0)
	if err != nil || second == leader {
		t.Fatalf("after the leader's end %v leads (%v)", second, err)
	}
	if err := second.Stop(); err != nil {
		t.Fatal(err)
	}
	write(kafka.NotEnoughReplicas)
	for _, node := range []*KafkaNode{leader, second} {
		if err := node.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	replicas(3)
	write(nil)
}

// A client that comes through the listener PROXIED is told the proxy's address,
// the others the broker's own.
func TestProxiedKafka(t *testing.T) {
	t.Parallel()
	const proxy = "127.0.0.1:9"
	k := startTestKafka(t, KafkaOptions{Proxy: proxy})
	for address, want := range map[string]string{k.Brokers()[0]: k.Brokers()[0], k.ProxiedAddress(): proxy} {
		client, done := kafkaClient(address)
		metadata, err := client.Metadata(t.Context(), &kafka.MetadataRequest{})
		done()
		if err != nil {
			t.Fatal(err)
		}
		if len(metadata.Brokers) != 1 || net.JoinHostPort(metadata.Brokers[0].Host, strconv.Itoa(metadata.Brokers[0].Port)) != want {
			t.Errorf("the metadata at %s names %v, want %s", address, metadata.Brokers, want)
		}
	}
}
