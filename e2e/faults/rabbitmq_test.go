package faults_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/outboxrelay/relay/e2e/proxy"
)

// rabbitFaults are what happens to a RabbitMQ node and on the way to it. A
// message that is sent again is there twice: RabbitMQ has no producers that it
// knows again.
var rabbitFaults = []fault{
	{"node restarted", restartNode},
	{"queue full", fillQueue},
	{"message cut in mid-frame", cutMessage},
	{"confirm lost", loseConfirm},
	{"half-open connections", halfOpenRabbit},
	{"slow broker", slowRabbit},
	{"broker refuses connections", refuseRabbit},
}

// nodeFaults are more of them. By themselves they are played in the package above,
// with both orders of the sink: TestRabbitMQFailsUnderLoad.
var nodeFaults = []fault{
	{"node killed", killNode},
	{"node frozen", freezeNode},
	{"connections closed", closeConnections},
	{"memory alarm", raiseAlarm},
}

func killNode(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	p.rabbit.Kill()
	sleep(ctx, between(random, 0, time.Second))
	return p.inFlight(), errors.Join(p.rabbit.Start(ctx), p.flows(ctx))
}

func restartNode(ctx context.Context, p *play, _ *rand.Rand) (int, error) {
	return p.inFlight(), errors.Join(p.rabbit.Stop(), p.rabbit.Start(ctx), p.flows(ctx))
}

// freezeNode stops the node by SIGSTOP, for less or longer than the relays wait.
func freezeNode(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	if err := p.rabbit.Pause(); err != nil {
		return 0, err
	}
	err := p.marksNothing(ctx, between(random, time.Second, publishTimeout+time.Second))
	return p.inFlight(), errors.Join(err, p.rabbit.Resume(), p.flows(ctx))
}

func closeConnections(ctx context.Context, p *play, _ *rand.Rand) (int, error) {
	return p.inFlight(), errors.Join(p.rabbit.CloseAllConnections(ctx, "maintenance"), p.flows(ctx))
}

// raiseAlarm has the node block publishers, and expects nothing to be marked.
func raiseAlarm(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	watermark := func(of string) error {
		_, err := p.rabbit.Control(ctx, "set_vm_memory_high_watermark", of)
		return err
	}
	if err := watermark("0"); err != nil {
		return 0, errors.Join(err, watermark("0.4"))
	}
	err := p.marksNothing(ctx, between(random, 500*time.Millisecond, 2*time.Second))
	return p.inFlight(), errors.Join(err, watermark("0.4"), p.flows(ctx))
}

// fillQueue takes the consumers of one queue away, so that it fills up and
// refuses. Nothing of it is marked, and the other queue's messages flow; when it
// is consumed again, so do its own, each of them once.
func fillQueue(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	queues := p.log.Topics()
	i := random.IntN(len(queues))
	full := queues[i]
	room := int64(1 + random.IntN(50))
	// The queue has x-overflow from its beginning. Were it in the policy too, the
	// limit would apply first, and drop what the queue holds beyond it.
	limit := fmt.Sprintf(`{"max-length":%d}`, room)
	p.queues.Neglect(full)
	defer p.queues.Tend(full)
	_, err := p.rabbit.Control(ctx, "set_policy", "full", "^"+full+"$", limit, "--apply-to", "queues")
	if err == nil {
		err = errors.Join(await(ctx, "the queue to be full", func(context.Context) (bool, string) {
			n, err := p.queues.Waiting(full)
			return err == nil && n >= room, fmt.Sprintf("it has %d of %d messages (%v)", n, room, err)
		}),
			p.marksNothingOf(ctx, []string{full}, between(random, 500*time.Millisecond, 2*time.Second)),
			p.flowsIntoTopic(ctx, queues[(i+1)%len(queues)]))
	}
	_, clearing := p.rabbit.Control(ctx, "clear_policy", "full")
	p.queues.Tend(full)
	return 0, errors.Join(err, clearing, p.flowsIntoTopic(ctx, full))
}

// cutMessage cuts a connection in the middle of what a relay sends.
func cutMessage(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	shot := p.brokers[0].CutAfter(proxy.ToServer, request+random.IntN(200))
	return p.stage.Config.InFlight(), errors.Join(fires(ctx, shot), p.flows(ctx))
}

// loseConfirm has the node take messages and the relay not know of it.
func loseConfirm(ctx context.Context, p *play, _ *rand.Rand) (int, error) {
	shot := p.brokers[0].DropAnswer(request)
	return p.stage.Config.InFlight(), errors.Join(fires(ctx, shot), p.flows(ctx))
}

// halfOpenRabbit swallows what the relays say on the connections that they have.
// They have to find out by themselves.
func halfOpenRabbit(ctx context.Context, p *play, _ *rand.Rand) (int, error) {
	p.brokers[0].HalfOpen()
	err := p.flows(ctx)
	return p.inFlight(), errors.Join(err, p.brokers[0].Pass())
}

// slowRabbit delays what moves to and from the node, then narrows the way.
func slowRabbit(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	broker := p.brokers[0]
	broker.Delay(between(random, 50*time.Millisecond, 300*time.Millisecond))
	err := p.flows(ctx)
	broker.Bandwidth(200_000)
	return 0, errors.Join(err, p.flows(ctx), broker.Pass())
}

// refuseRabbit takes the node away for a while.
func refuseRabbit(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	p.brokers[0].Refuse()
	err := p.marksNothing(ctx, between(random, 500*time.Millisecond, 2*time.Second))
	return p.inFlight(), errors.Join(err, p.brokers[0].Pass(), p.flows(ctx))
}
