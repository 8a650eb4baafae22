package faults_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/e2e/proxy"
	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// partitions is how many a topic has at first, so that each broker leads some.
const partitions = 6

// arena is the servers that scenarios break, each behind a proxy: PostgreSQL, and
// either a Kafka cluster or a RabbitMQ node. Beside the cluster, relays with two
// sinks have the shared RabbitMQ, which only its proxy takes away.
type arena struct {
	postgres *servers.Postgres
	database *proxy.Proxy
	cluster  *servers.KafkaCluster
	rabbit   *servers.RabbitMQ
	// brokers are the brokers' proxies, in the order of the brokers.
	brokers []*proxy.Proxy
	// secondBroker is the proxy of the second sink's RabbitMQ.
	secondBroker *proxy.Proxy
}

// startKafkaArena starts the servers of a test and its subtests.
func startKafkaArena(t *testing.T) *arena {
	t.Helper()
	a := &arena{}
	addresses := a.listen(t, 3)
	a.start(t, func() (err error) {
		a.cluster, err = servers.StartKafkaCluster(t.Context(), servers.KafkaClusterOptions{Proxies: addresses})
		return err
	})
	servers.CleanUp(t, a.cluster)
	for i, node := range a.cluster.Nodes() {
		a.brokers[i].Forward(node.ProxiedAddress())
	}
	second, err := proxy.New(hostOf(t, servers.FromEnvironment().RabbitMQURL))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = second.Close() })
	a.secondBroker = second
	return a
}

// startRabbitArena is startKafkaArena with RabbitMQ.
func startRabbitArena(t *testing.T) *arena {
	t.Helper()
	a := &arena{}
	a.listen(t, 1)
	a.start(t, func() (err error) {
		a.rabbit, err = servers.StartRabbitMQ(t.Context(), servers.RabbitMQOptions{})
		return err
	})
	servers.CleanUp(t, a.rabbit)
	a.brokers[0].Forward(hostOf(t, a.rabbit.URL("/")))
	return a
}

// listen makes the proxies of brokers and returns their addresses.
func (a *arena) listen(t *testing.T, brokers int) (addresses []string) {
	t.Helper()
	for range brokers {
		p, err := proxy.Listen()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		a.brokers = append(a.brokers, p)
		addresses = append(addresses, p.Address())
	}
	return addresses
}

// start starts PostgreSQL beside the broker.
func (a *arena) start(t *testing.T, broker func() error) {
	t.Helper()
	started := make(chan error, 1)
	go func() { started <- broker() }()
	var err error
	a.postgres, err = servers.StartPostgres(t.Context(), servers.PostgresOptions{})
	if err == nil {
		servers.CleanUp(t, a.postgres)
		a.database, err = proxy.New(hostOf(t, a.postgres.URL("postgres")))
	}
	if err == nil {
		t.Cleanup(func() { _ = a.database.Close() })
	}
	if err := errors.Join(err, <-started); err != nil {
		t.Fatal(err)
	}
}

func hostOf(t testing.TB, address string) string {
	t.Helper()
	parsed, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Host
}

// through returns the database's URL with another host.
func through(t testing.TB, address, host string) string {
	t.Helper()
	parsed, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	parsed.Host = host
	return parsed.String()
}

// newPlay makes a database and topics or queues in the arena, and a stage whose
// relays reach both through the proxies and everything else does not. With a
// second sink there is one more topic, which leads there. The relays do not run
// yet.
func (a *arena) newPlay(t testing.TB, topics int, second bool, settings scenario.Settings) *play {
	t.Helper()
	p := &play{arena: a, t: t}
	if a.rabbit != nil {
		p.queues = scenario.NewRabbitQueues(t, a.rabbit.URL("/"), topics, amqp.Table{"x-overflow": "reject-publish"})
		p.queues.SinkURL(through(t, a.rabbit.URL("/"), a.brokers[0].Address()))
		p.main = p.queues
	} else {
		p.topics = a.newTopics(t, topics)
		p.main = p.topics
	}
	p.log = p.main
	if second {
		url := servers.FromEnvironment().RabbitMQURL
		p.second = scenario.NewRabbitQueue(t, url, nil)
		p.second.SinkURL(through(t, url, a.secondBroker.Address()))
		p.log = scenario.Join(p.main, p.second)
	}
	p.stage = scenario.NewStage(t, scenario.NewDatabaseOn(t, a.postgres.URL("postgres")), p.log, settings)
	p.stage.Config = p.stage.Config.With(scenario.Settings{"database.url": through(t, p.stage.Database.URL, a.database.Address())})
	p.topic = p.stage.Topic()
	return p
}

func (a *arena) newTopics(t testing.TB, topics int) *scenario.KafkaLog {
	t.Helper()
	var names []string
	for range topics {
		name := fmt.Sprintf("faults-%08x", rand.Uint32())
		if err := a.cluster.CreateTopic(t.Context(), name, partitions, nil); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	log := scenario.ReadKafkaTopics(t, a.cluster.Brokers(), names, partitions)
	var addresses []string
	for _, broker := range a.brokers {
		addresses = append(addresses, broker.Address())
	}
	log.SinkBrokers(addresses...)
	return log
}

// heal puts everything right that a scenario may have left broken.
func (a *arena) heal(ctx context.Context, topics ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	errs := []error{a.database.Pass()}
	for _, broker := range a.brokers {
		errs = append(errs, broker.Pass())
	}
	if a.secondBroker != nil {
		errs = append(errs, a.secondBroker.Pass())
	}
	if !a.postgres.Running() {
		errs = append(errs, a.postgres.Start(ctx))
	}
	if a.rabbit != nil {
		return errors.Join(append(errs, revive(ctx, a.rabbit))...)
	}
	for _, node := range a.cluster.Nodes() {
		errs = append(errs, revive(ctx, node))
	}
	errs = append(errs, a.cluster.AwaitReplicas(ctx, 3, topics...))
	return errors.Join(errs...)
}

// revive lets a broker go on that was frozen, and starts one that is gone.
func revive(ctx context.Context, broker interface {
	Running() bool
	Resume() error
	Start(ctx context.Context) error
}) error {
	if broker.Running() {
		return broker.Resume()
	}
	return broker.Start(ctx)
}
