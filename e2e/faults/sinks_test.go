package faults_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

// secondFaults are what happens to the way to the second sink. The first one has
// to flow meanwhile.
var secondFaults = []fault{
	{"away", refuseSecond},
	{"half-open connections", halfOpenSecond},
	{"slow", slowSecond},
	{"frozen", freezeSecond},
}

// playTwoSinks plays each fault of one of two sinks, and expects the other one
// to flow. Those that take long are for a soak, and for the random mix.
func playTwoSinks(t *testing.T, a *arena) {
	for _, f := range append([]fault{{"first away", refuseFirst}}, secondFaults...) {
		if *soakFor == 0 && (f.name == "half-open connections" || f.name == "slow") {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			p := newPlayOfTwoSinks(t, a, 2, 1, nil)
			p.perform(steady, func(ctx context.Context) (int, error) {
				return f.inflict(ctx, p, p.stage.Random(1<<33))
			})
		})
	}
}

// firstFlows waits until the first sink gets something newer, several times, as
// what is queued behind the other one must not come first. In a random mix the
// first one has faults of its own.
func (p *play) firstFlows(ctx context.Context) error {
	if p.together {
		return nil
	}
	return p.flowsRepeatedly(ctx, p.topic)
}

func (p *play) flowsRepeatedly(ctx context.Context, topic string) error {
	for range 3 {
		if err := p.flowsIntoTopic(ctx, topic); err != nil {
			return err
		}
	}
	return nil
}

func (p *play) secondTopic() string { return p.second.Topics()[0] }

// refuseFirst takes the first sink's brokers away. The second one flows.
func refuseFirst(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	for _, broker := range p.brokers {
		broker.Refuse()
	}
	errs := []error{
		p.marksNothing(ctx, between(random, time.Second, 2*time.Second)),
		p.flowsRepeatedly(ctx, p.secondTopic()),
	}
	for _, broker := range p.brokers {
		errs = append(errs, broker.Pass())
	}
	return p.inFlight(), errors.Join(append(errs, p.flowsIntoTopic(ctx, p.topic))...)
}

// refuseSecond takes the second sink away. The first one flows.
func refuseSecond(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	p.secondBroker.Refuse()
	err := errors.Join(p.marksNothingOf(ctx, p.second.Topics(), between(random, time.Second, 2*time.Second)), p.firstFlows(ctx))
	return p.inFlight(), errors.Join(err, p.secondBroker.Pass(), p.flowsIntoTopic(ctx, p.secondTopic()))
}

// freezeSecond is refuseSecond with a broker that accepts and never answers.
func freezeSecond(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	p.secondBroker.Freeze()
	err := errors.Join(p.marksNothingOf(ctx, p.second.Topics(), between(random, time.Second, publishTimeout+time.Second)), p.firstFlows(ctx))
	return p.inFlight(), errors.Join(err, p.secondBroker.Pass(), p.flowsIntoTopic(ctx, p.secondTopic()))
}

// halfOpenSecond swallows what the relays say on the connections that they have
// to the second sink.
func halfOpenSecond(ctx context.Context, p *play, _ *rand.Rand) (int, error) {
	p.secondBroker.HalfOpen()
	err := errors.Join(p.firstFlows(ctx), p.flowsIntoTopic(ctx, p.secondTopic()))
	return p.inFlight(), errors.Join(err, p.secondBroker.Pass())
}

// slowSecond delays what moves to and from the second sink.
func slowSecond(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	p.secondBroker.Delay(between(random, 100*time.Millisecond, 500*time.Millisecond))
	err := errors.Join(p.firstFlows(ctx), p.flowsIntoTopic(ctx, p.secondTopic()))
	return p.inFlight(), errors.Join(err, p.secondBroker.Pass())
}
