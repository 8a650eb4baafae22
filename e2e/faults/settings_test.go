package faults_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// brokerSettings are faults that settings of the cluster make, while it runs.
var brokerSettings = []fault{
	{"clock skew", skewClock},
	{"quota", throttle},
}

// admin changes something in the cluster and asks again until that is done.
func (p *play) admin(ctx context.Context, what string, change func(*kafka.Client) error) error {
	transport := &kafka.Transport{MetadataTTL: time.Second}
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(p.cluster.Brokers()...), Timeout: 10 * time.Second, Transport: transport}
	return await(ctx, what, func(context.Context) (bool, string) {
		err := change(client)
		return err == nil, fmt.Sprint(err)
	})
}

// clockRefused is how a relay's log tells Kafka's error 32.
var clockRefused = regexp.MustCompile(`(?i)invalid.?timestamp`)

// skewClock has the brokers refuse every timestamp as too far from their clock,
// with the error that they answer when that is an hour behind the relays' (32,
// INVALID_TIMESTAMP). It concerns no message: all wait, whatever the policy says
// of messages that are refused, and flow when the clock is right.
func skewClock(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	const setting = "message.timestamp.before.max.ms"
	refusals := func() (n int) {
		for _, relay := range p.fleet {
			n += len(clockRefused.FindAllString(relay.Log(), -1))
		}
		return n
	}
	before := refusals()
	err := p.admin(ctx, "the clock to be wrong", p.alterTopics(ctx, setting, "0", kafka.ConfigOperationSet))
	if err == nil {
		err = await(ctx, "a message to be refused for its timestamp", func(context.Context) (bool, string) {
			return refusals() > before, "no relay says so"
		})
		sleep(ctx, between(random, 2*time.Second, 4*time.Second))
	}
	if err == nil && !p.together { // else poisoned rows are held back too
		err = p.holdsNothingBack(ctx)
	}
	return 0, errors.Join(err, p.admin(ctx, "the clock to be right", p.alterTopics(ctx, setting, "", kafka.ConfigOperationDelete)), p.flowsInto(ctx))
}

// flowsInto waits for each topic of the cluster to flow.
func (p *play) flowsInto(ctx context.Context) error {
	var errs []error
	for _, topic := range p.main.Topics() {
		errs = append(errs, p.flowsIntoTopic(ctx, topic))
	}
	return errors.Join(errs...)
}

func (p *play) alterTopics(ctx context.Context, name, value string, operation kafka.ConfigOperation) func(*kafka.Client) error {
	request := &kafka.IncrementalAlterConfigsRequest{}
	for _, topic := range p.main.Topics() {
		request.Resources = append(request.Resources, kafka.IncrementalAlterConfigsRequestResource{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: topic,
			Configs: []kafka.IncrementalAlterConfigsRequestConfig{{Name: name, Value: value, ConfigOperation: operation}},
		})
	}
	return func(client *kafka.Client) error {
		response, err := client.IncrementalAlterConfigs(ctx, request)
		if err != nil {
			return err
		}
		for _, resource := range response.Resources {
			err = errors.Join(err, resource.Error)
		}
		return err
	}
}

// holdsNothingBack fails when a message counts as refused.
func (p *play) holdsNothingBack(ctx context.Context) error {
	var held, dead int
	if err := p.stage.Database.Pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM outbox_parked), (SELECT count(*) FROM outbox_dead_letters)`).Scan(&held, &dead); err != nil {
		return err
	}
	if held+dead > 0 {
		return fmt.Errorf("%d messages are held back and %d are dead letters, for what is no fault of theirs", held, dead)
	}
	return nil
}

// playClockSkew plays skewClock with the policies that give a refused message up.
func playClockSkew(t *testing.T, a *arena) {
	for _, policy := range []string{"skip", "dead_letter"} {
		t.Run(policy, func(t *testing.T) {
			p := newPlay(t, a, 2, 1, scenario.Settings{"failures.policy": policy})
			p.perform(steady, func(ctx context.Context) (int, error) { return skewClock(ctx, p, p.stage.Random(1<<33)) })
		})
	}
}

// setQuota bounds the bytes per second that each broker takes of all relays
// together; 0 lifts that.
func (p *play) setQuota(ctx context.Context, bytes int) error {
	what := kafka.AlterClientQuotaOps{Key: "producer_byte_rate", Value: float64(bytes), Remove: bytes == 0}
	return p.admin(ctx, "the quota", func(client *kafka.Client) error {
		response, err := client.AlterClientQuotas(ctx, &kafka.AlterClientQuotasRequest{Entries: []kafka.AlterClientQuotaEntry{{
			Entities: []kafka.AlterClientQuotaEntity{{EntityType: "client-id", EntityName: "outbox-relay"}},
			Ops:      []kafka.AlterClientQuotaOps{what},
		}}})
		if err != nil {
			return err
		}
		for _, entry := range response.Entries {
			err = errors.Join(err, entry.Error)
		}
		return err
	})
}

// throttle has the brokers slow the relays down for a while.
func throttle(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	err := p.setQuota(ctx, 20_000)
	sleep(ctx, between(random, 2*time.Second, 5*time.Second))
	return 0, errors.Join(err, p.setQuota(ctx, 0), p.flowsInto(ctx))
}

// playQuota has the brokers throttle the relays for longer than those give a
// broker for an answer, with more and larger messages than the quota bears.
// Nothing breaks, so nothing is sent twice.
func playQuota(t *testing.T, a *arena) {
	const (
		burst, size = 800, 8_000
		quota       = 150_000
	)
	p := newPlay(t, a, 2, 1, scenario.Settings{"outbox.workers": 4})
	ctx := t.Context()
	sampler := p.stage.StartSampler()
	load := p.stage.StartLoad(steady)
	if err := errors.Join(p.flows(ctx), p.setQuota(ctx, quota)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for i := range burst {
		key := fmt.Sprintf("burst-%d", i%100)
		p.stage.Insert(p.topic, &key, strings.Repeat(fmt.Sprintf("%07d,", i), size/8))
	}
	sleep(ctx, 9*time.Second)
	pending, err := p.stage.Pending()
	t.Logf("after %v under a quota of %d bytes/s per broker %d rows are pending (%v)", time.Since(began).Round(time.Second), quota, pending, err)
	if err := errors.Join(p.setQuota(ctx, 0), p.flows(ctx)); err != nil {
		t.Error(err)
	}
	load.Stop()
	p.stage.Drain(patience)
	p.fleet.Stop()
	sampler.Stop()
	p.stage.Verify(0)
}
