package faults_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/e2e/proxy"
	"github.com/outboxrelay/relay/e2e/servers"
)

// kafkaFaults are what happens to a Kafka cluster and on the way to it.
var kafkaFaults = []fault{
	{"leader killed", killLeader},
	{"too few replicas in sync", loseReplicas},
	{"leader frozen", freezeLeader},
	{"one broker out of reach", loseOneBroker},
	{"partitions added", addPartitions},
	{"request cut in mid-frame", cutRequest},
	{"answer lost", loseAnswer},
	{"half-open connections", halfOpenKafka},
	{"slow brokers", slowKafka},
	{"brokers refuse connections", refuseKafka},
}

// request is a size that only requests with records have.
const request = 300

// leader picks a partition and returns its leader.
func (p *play) leader(ctx context.Context, random *rand.Rand) (partition int, node *servers.KafkaNode, err error) {
	partition = random.IntN(partitions)
	err = await(ctx, "a leader", func(ctx context.Context) (bool, string) {
		var err error
		node, err = p.cluster.Leader(ctx, p.topic, partition)
		return err == nil, fmt.Sprint(err)
	})
	return partition, node, err
}

// whole waits until all replicas are in sync again.
func (p *play) whole(ctx context.Context) error { return p.cluster.AwaitReplicas(ctx, 3, p.topic) }

// killLeader ends a broker by SIGKILL. Its partitions have to flow while it is
// gone.
func killLeader(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	partition, node, err := p.leader(ctx, random)
	if err != nil {
		return 0, err
	}
	node.Kill()
	err = p.flowsIn(ctx, partition)
	return p.inFlight(), errors.Join(err, node.Start(ctx), p.whole(ctx))
}

// loseReplicas takes two of three brokers away, so that the last one must not
// acknowledge anything, and the relays must not mark anything.
func loseReplicas(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	survivor := random.IntN(3)
	var gone []*servers.KafkaNode
	for i, node := range p.cluster.Nodes() {
		if i != survivor {
			// Stopping in order would wait for replicas that are gone.
			node.Kill()
			gone = append(gone, node)
		}
	}
	errs := []error{p.marksNothing(ctx, 2*time.Second)}
	for _, node := range gone {
		errs = append(errs, node.Start(ctx))
	}
	errs = append(errs, p.whole(ctx), p.flows(ctx))
	return p.inFlight(), errors.Join(errs...)
}

// marksNothing waits until no row of the arena's own broker was marked for a
// while although some were pending.
func (p *play) marksNothing(ctx context.Context, quiet time.Duration) error {
	return p.marksNothingOf(ctx, p.main.Topics(), quiet)
}

// marksNothingOf is marksNothing for the rows of some topics.
func (p *play) marksNothingOf(ctx context.Context, topics []string, quiet time.Duration) error {
	last, since := -1, time.Now()
	return await(ctx, "the marks to end while rows are pending", func(ctx context.Context) (bool, string) {
		var marked, pending int
		err := p.stage.Database.Pool.QueryRow(ctx,
			`SELECT (SELECT count(*) FROM truth WHERE topic = ANY ($1)) - count(*), count(*) FROM `+p.stage.Table+
				` WHERE published_at IS NULL AND topic = ANY ($1)`, topics).Scan(&marked, &pending)
		if err != nil {
			return false, err.Error()
		}
		if marked != last || pending == 0 {
			last, since = marked, time.Now()
		}
		return time.Since(since) > quiet, fmt.Sprintf("%d rows are marked and more come, %d are pending", marked, pending)
	})
}

// freezeLeader stops a broker by SIGSTOP for longer than the cluster and the
// relays wait for it. Its partitions have to flow while it is frozen.
func freezeLeader(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	partition, node, err := p.leader(ctx, random)
	if err != nil {
		return 0, err
	}
	if err := node.Pause(); err != nil {
		return 0, err
	}
	err = p.flowsIn(ctx, partition)
	return p.inFlight(), errors.Join(err, node.Resume(), p.whole(ctx))
}

// loseOneBroker takes a leader away from the relays only, so that the cluster
// sees no reason to elect another. The keys of its partitions wait, those of the
// others flow.
func loseOneBroker(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	partition, node, err := p.leader(ctx, random)
	if err != nil {
		return 0, err
	}
	broker := p.brokers[node.ID-1]
	broker.Refuse()
	for other := range partitions {
		if leader, err := p.cluster.Leader(ctx, p.topic, other); err == nil && leader != node {
			err = p.flowsIn(ctx, other)
			if err != nil {
				return 0, errors.Join(err, broker.Pass())
			}
		}
	}
	err = broker.Pass()
	return p.inFlight(), errors.Join(err, p.flowsIn(ctx, partition))
}

// addPartitions doubles the partitions, so that half of the keys move, and
// expects the new ones to be used and each to be in order.
func addPartitions(ctx context.Context, p *play, _ *rand.Rand) (int, error) {
	if p.stage.Repartitioned {
		return 0, nil // once is enough for a topic
	}
	p.stage.Repartitioned = true
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(p.cluster.Brokers()...), Timeout: 30 * time.Second, Transport: transport}
	if err := await(ctx, "the new partitions", func(ctx context.Context) (bool, string) {
		response, err := client.CreatePartitions(ctx, &kafka.CreatePartitionsRequest{
			Topics: []kafka.TopicPartitionsConfig{{Name: p.topic, Count: 2 * partitions}},
		})
		if err == nil {
			err = response.Errors[p.topic]
		}
		if errors.Is(err, kafka.InvalidPartitionNumber) {
			err = nil // an attempt before succeeded without saying so
		}
		return err == nil, fmt.Sprint(err)
	}); err != nil {
		return 0, err
	}
	p.topics.Repartitioned(p.topic, 2*partitions)
	return 0, errors.Join(p.whole(ctx), p.flowsIn(ctx, partitions))
}

// cutRequest cuts a connection to a leader in the middle of a request with
// records. The batch is sent again, and appended once.
func cutRequest(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	length := request + random.IntN(200)
	return 0, p.strikeLeader(ctx, random, func(broker *proxy.Proxy) *proxy.Shot { return broker.CutAfter(proxy.ToServer, length) })
}

// loseAnswer has a leader append records and the relay not know of it. The batch
// is sent again, and appended once.
func loseAnswer(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	return 0, p.strikeLeader(ctx, random, func(broker *proxy.Proxy) *proxy.Shot { return broker.DropAnswer(request) })
}

// strikeLeader arms a shot at the leader of a partition, waits until it fired,
// and then for the partition to flow. A broker that was restarted leads nothing
// for minutes, so it gets no records and nothing could strike there; when another
// broker is elected meanwhile the shot follows the leader.
func (p *play) strikeLeader(ctx context.Context, random *rand.Rand, arm func(*proxy.Proxy) *proxy.Shot) error {
	partition, leader, err := p.leader(ctx, random)
	if err != nil {
		return err
	}
	broker := p.brokers[leader.ID-1]
	shot := arm(broker)
	looked := time.Now()
	if err := await(ctx, "a connection to be cut", func(ctx context.Context) (bool, string) {
		state := fmt.Sprintf("none was at broker %d, which leads partition %d", leader.ID, partition)
		if shot.HasFired() || time.Since(looked) < time.Second {
			return shot.HasFired(), state
		}
		looked = time.Now()
		if now, err := p.cluster.Leader(ctx, p.topic, partition); err == nil && now != leader && broker.Disarm(shot) {
			leader, broker = now, p.brokers[now.ID-1]
			shot = arm(broker)
		}
		return false, state
	}); err != nil {
		broker.Disarm(shot)
		return err
	}
	return p.flowsIn(ctx, partition)
}

// halfOpenKafka swallows what the relays say on the connections that they have
// to a leader. They have to find out by themselves.
func halfOpenKafka(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	partition, node, err := p.leader(ctx, random)
	if err != nil {
		return 0, err
	}
	broker := p.brokers[node.ID-1]
	broker.HalfOpen()
	err = p.flowsIn(ctx, partition)
	return p.inFlight(), errors.Join(err, broker.Pass())
}

// slowKafka delays the brokers' answers, then narrows the way to them.
func slowKafka(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	var errs []error
	delay := between(random, 50*time.Millisecond, 300*time.Millisecond)
	for _, broker := range p.brokers {
		broker.Delay(delay)
	}
	errs = append(errs, p.flows(ctx))
	for _, broker := range p.brokers {
		broker.Bandwidth(200_000)
	}
	errs = append(errs, p.flows(ctx))
	for _, broker := range p.brokers {
		errs = append(errs, broker.Pass())
	}
	return 0, errors.Join(errs...)
}

// refuseKafka takes all brokers away for a while.
func refuseKafka(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	for _, broker := range p.brokers {
		broker.Refuse()
	}
	errs := []error{p.marksNothing(ctx, between(random, 500*time.Millisecond, 2*time.Second))}
	for _, broker := range p.brokers {
		errs = append(errs, broker.Pass())
	}
	return p.inFlight(), errors.Join(append(errs, p.flows(ctx))...)
}
