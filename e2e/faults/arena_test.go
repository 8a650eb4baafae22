package faults_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/proxy"
	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// partitions is how many a topic has at first, so that each broker leads some.
const partitions = 6

// arena is the servers that scenarios break, each behind a proxy.
type arena struct {
	postgres *servers.Postgres
	database *proxy.Proxy
	cluster  *servers.KafkaCluster
	// brokers are the brokers' proxies, in the order of the brokers.
	brokers []*proxy.Proxy
}

// startArena starts the servers of a test and its subtests.
func startArena(t *testing.T) *arena {
	t.Helper()
	a := &arena{}
	var addresses []string
	for range 3 {
		p, err := proxy.Listen()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		a.brokers = append(a.brokers, p)
		addresses = append(addresses, p.Address())
	}
	started := make(chan error, 1)
	go func() {
		var err error
		a.cluster, err = servers.StartKafkaCluster(t.Context(), servers.KafkaClusterOptions{Proxies: addresses})
		started <- err
	}()
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
	servers.CleanUp(t, a.cluster)
	for i, node := range a.cluster.Nodes() {
		a.brokers[i].Forward(node.ProxiedAddress())
	}
	return a
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

// newStage makes a database and topics in the arena, and a stage whose relays
// reach both through the proxies and everything else does not.
func (a *arena) newStage(t testing.TB, topics int, settings scenario.Settings) (*scenario.Stage, *scenario.KafkaLog) {
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
	stage := scenario.NewStage(t, scenario.NewDatabaseOn(t, a.postgres.URL("postgres")), log, settings)
	stage.Config = stage.Config.With(scenario.Settings{"database.url": through(t, stage.Database.URL, a.database.Address())})
	return stage, log
}

// heal puts everything right that a scenario may have left broken.
func (a *arena) heal(ctx context.Context, topics ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	errs := []error{a.database.Pass()}
	for _, broker := range a.brokers {
		errs = append(errs, broker.Pass())
	}
	if !a.postgres.Running() {
		errs = append(errs, a.postgres.Start(ctx))
	}
	for _, node := range a.cluster.Nodes() {
		if node.Running() {
			errs = append(errs, node.Resume())
		} else {
			errs = append(errs, node.Start(ctx))
		}
	}
	errs = append(errs, a.cluster.AwaitReplicas(ctx, 3, topics...))
	return errors.Join(errs...)
}
