package kafka

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

// crew are the partitions that this member processes, each by a goroutine of
// its own, through one generation or, with cooperative balancers, many. Only the
// goroutine of Run uses it.
type crew struct {
	consumer *Consumer
	progress *progress
	workers  map[partitionID]*worker
	// last is the generation that was served last.
	last *generation
	// fatal is what no joining helps against.
	fatal error
}

type worker struct {
	// end is for what is not begun yet, interrupt also for what runs.
	end, interrupt context.CancelCauseFunc
	idle           chan struct{}
}

func newCrew(c *Consumer) *crew {
	return &crew{consumer: c, progress: newProgress(), workers: make(map[partitionID]*worker)}
}

// assign starts processing what is new, and returns what runs and is assigned no
// more.
func (c *crew) assign(ctx context.Context, g *generation) (moved []partitionID) {
	observer := c.consumer.runner.Observer()
	for _, id := range c.running() {
		if _, ok := g.partitions[id]; !ok {
			moved = append(moved, id)
		}
	}
	c.consumer.cluster.budget.divide(len(g.partitions))
	for id, from := range g.partitions {
		if c.workers[id] != nil {
			continue
		}
		c.progress.add(id, from)
		w := &worker{idle: make(chan struct{})}
		ended, end := context.WithCancelCause(ctx)
		work, interrupt := context.WithCancelCause(context.WithoutCancel(ctx))
		w.end, w.interrupt = end, interrupt
		c.workers[id] = w
		observer.Assigned(c.consumer.config.Inbox.Consumer, id.topic, id.id)
		p := &partition{
			consumer: c.consumer, id: id, progress: c.progress,
			fetcher: fetcher{config: &c.consumer.config, cluster: c.consumer.cluster, partition: id, since: g.heard, replica: noReplica, topic: from.topic, epoch: from.epoch},
			logger:  c.consumer.logger.With("topic", id.topic, "partition", id.id),
		}
		go func() {
			defer close(w.idle)
			defer end(nil)
			defer interrupt(nil)
			p.run(ended, work, from.offset)
		}()
	}
	c.consumer.assigned.Store(int64(len(c.workers)))
	return moved
}

func (c *crew) running() []partitionID { return slices.Collect(maps.Keys(c.workers)) }

// owned are the partitions that go on.
func (c *crew) owned() map[string][]int32 {
	owned := make(map[string][]int32)
	for id := range c.workers {
		owned[id.topic] = append(owned[id.topic], id.id)
	}
	return owned
}

func (c *crew) end(partitions []partitionID, because error) {
	for _, id := range partitions {
		c.workers[id].end(because)
	}
}

func (c *crew) interrupt(partitions []partitionID) {
	for _, id := range partitions {
		c.workers[id].interrupt(errLate)
	}
}

// idle is closed when nothing of partitions runs.
func (c *crew) idle(partitions []partitionID) <-chan struct{} {
	var workers []*worker
	for _, id := range partitions {
		workers = append(workers, c.workers[id])
	}
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		for _, w := range workers {
			<-w.idle
		}
	}()
	return idle
}

// drop forgets partitions of which nothing runs.
func (c *crew) drop(partitions []partitionID) {
	observer := c.consumer.runner.Observer()
	for _, id := range partitions {
		delete(c.workers, id)
		c.progress.remove(id)
		observer.Revoked(c.consumer.config.Inbox.Consumer, id.topic, id.id)
	}
	c.consumer.cluster.budget.divide(len(c.workers))
	c.consumer.assigned.Store(int64(len(c.workers)))
}

// fenced notes that another process is this static member.
func (c *crew) fenced(err error) {
	if errors.Is(err, kafkago.FencedInstanceID) {
		c.fatal = err
	}
}

// joining is the context in which to join. Where partitions go on it outlives
// ctx for a moment: how far they went can only be committed by a member of the
// generation that is about to begin.
func (c *crew) joining(ctx context.Context) (context.Context, context.CancelFunc) {
	if len(c.workers) == 0 {
		return context.WithCancel(ctx)
	}
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(stopTime, cancel) })
	return longer, func() {
		stop()
		cancel()
	}
}

// unjoined is called when joining failed: partitions that still run may be
// somebody else's by now.
func (c *crew) unjoined(ctx context.Context, err error) {
	c.fenced(err)
	if len(c.workers) == 0 {
		return
	}
	lost := expelled(err) || time.Since(c.last.heard) > c.consumer.config.SessionTimeout
	if !lost && ctx.Err() == nil {
		return
	}
	c.last.stale = lost
	c.last.generation = c.last.member.generation // it may have joined, and got no further
	c.last.giveUp(ctx, c.running(), err)
}

// disband gives up what still runs when Run ends.
func (c *crew) disband(ctx context.Context) error {
	if c.last == nil || len(c.workers) == 0 {
		return nil
	}
	return c.last.stop(ctx, false)
}
