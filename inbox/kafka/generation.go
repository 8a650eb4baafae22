package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// metadataAge is how old the knowledge of a topic may be.
	metadataAge = 2 * time.Second
	// watchInterval is how often the group's leader looks for new partitions.
	watchInterval = 5 * time.Second
)

// Why a generation ends.
var (
	errStop      = errors.New("the consumer stops")
	errRebalance = errors.New("the group rebalances")
	errNewcomers = errors.New("topics have other partitions than were assigned")
	errLate      = errors.New("the partition is to be given up, or the consumer stops, and StopTimeout is over")
)

// generation is a member's part in a generation of its group.
type generation struct {
	*assignment
	consumer *Consumer
	member   *member
	progress *progress
	logger   *slog.Logger

	// ended ends when nothing new may begin, which end says; work when what
	// runs has to stop too.
	ended context.Context //nolint:containedctx // a generation is the scope of one
	end   context.CancelCauseFunc

	// heard is when the coordinator last counted this member in.
	heard   time.Time
	commits trouble
	beats   trouble
	// stale says that the coordinator takes no commit of this generation.
	stale bool
}

// serve processes this member's partitions until the group rebalances or ctx
// ends. It returns when nothing of it runs any more. The error is for Run's
// caller, and only there when ctx has ended.
func (c *Consumer) serve(ctx context.Context, m *member, assigned *assignment) error {
	g := &generation{
		assignment: assigned, consumer: c, member: m, progress: newProgress(assigned.partitions),
		logger: c.logger.With("generation", assigned.generation), heard: time.Now(),
	}
	g.ended, g.end = context.WithCancelCause(ctx)
	defer g.end(nil)
	work, interrupt := context.WithCancelCause(context.WithoutCancel(ctx))
	defer interrupt(nil)
	c.current.Store(g.progress)
	c.assigned.Store(int64(len(assigned.partitions)))
	c.cluster.budget.divide(len(assigned.partitions))
	defer c.assigned.Store(0)
	g.announce()

	var workers sync.WaitGroup
	if !c.asked {
		c.asked = true
		workers.Go(func() { c.warnOfRetention(g.ended, c.config.Topics) })
	}
	observer := c.runner.Observer()
	for id, committed := range assigned.partitions {
		observer.Assigned(c.config.Inbox.Consumer, id.topic, id.id)
		defer observer.Revoked(c.config.Inbox.Consumer, id.topic, id.id)
		p := &partition{
			consumer: c, id: id, progress: g.progress,
			fetcher: fetcher{config: &c.config, cluster: c.cluster, partition: id, since: g.heard, replica: noReplica, topic: committed.topic},
			logger:  g.logger.With("topic", id.topic, "partition", id.id),
		}
		workers.Go(func() { p.run(g.ended, work, committed.offset) })
	}
	if assigned.counts != nil {
		workers.Go(g.watch)
	}
	// A member without partitions has no workers, and lasts as long.
	workers.Go(func() { <-g.ended.Done() })
	idle := make(chan struct{})
	go func() {
		workers.Wait()
		close(idle)
	}()
	late := g.keep(ctx, idle, interrupt)
	g.flush(ctx)
	if late && ctx.Err() != nil {
		return fmt.Errorf("stopped after StopTimeout (%s): handlers had to be interrupted, their messages come again", c.config.StopTimeout)
	}
	return nil
}

// keep sends heartbeats and commits offsets until all workers are idle. It is
// the only one that talks to the coordinator. Members at work are kept in the
// group: the coordinator waits for them, RebalanceTimeout long.
func (g *generation) keep(ctx context.Context, idle <-chan struct{}, interrupt context.CancelCauseFunc) (late bool) {
	config := &g.consumer.config
	heartbeats := time.NewTicker(config.HeartbeatInterval)
	defer heartbeats.Stop()
	commits := time.NewTicker(config.CommitInterval)
	defer commits.Stop()
	ended := g.ended.Done()
	var patience <-chan time.Time
	for {
		// What is asked while the generation lasts need not outlast it.
		talk := g.ended
		if ended == nil {
			talk = context.WithoutCancel(ctx)
		}
		select {
		case <-idle:
			return late
		case <-ended:
			ended = nil
			because := context.Cause(g.ended)
			if ctx.Err() != nil {
				because = errStop
			}
			g.logger.Info("giving up the partitions", "because", because)
			timer := time.NewTimer(config.StopTimeout)
			defer timer.Stop()
			patience = timer.C
		case <-patience:
			late = true
			interrupt(errLate)
		case <-heartbeats.C:
			g.beat(talk)
		case <-commits.C:
			g.commit(talk)
			g.tellLag()
		case <-g.progress.urgent:
			g.commit(talk) // where it fails the ticker tries again
		}
	}
}

func (g *generation) announce() {
	var names []string
	for _, id := range slices.SortedFunc(maps.Keys(g.partitions), func(a, b partitionID) int { return slices.Compare([]byte(a.String()), []byte(b.String())) }) {
		names = append(names, id.String())
	}
	g.logger.Info("consuming", "partitions", names)
	for topic, n := range g.counts {
		if n == 0 {
			g.logger.Warn("the topic does not exist, or may not be described by this user: waiting for it", "topic", topic)
		}
	}
}

// watch ends the generation when topics have other partitions than the leader
// has assigned.
func (g *generation) watch() {
	topics := slices.Sorted(maps.Keys(g.counts))
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		select {
		case <-g.ended.Done():
			return
		case <-ticker.C:
			known, err := g.consumer.cluster.of(g.ended, topics)
			if err == nil && !maps.Equal(known.counts(topics), g.counts) {
				g.end(errNewcomers)
			}
		}
	}
}

// beat sends a heartbeat and follows what the coordinator answers.
func (g *generation) beat(ctx context.Context) {
	if g.stale {
		return
	}
	g.follow(g.member.heartbeat(ctx, g.generation), &g.beats, "cannot send heartbeats; trying again")
}

// commit commits what is pending. It reports whether nothing is left.
func (g *generation) commit(ctx context.Context) bool {
	pending := g.progress.pending()
	if g.stale || len(pending) == 0 {
		return len(pending) == 0
	}
	err := g.member.commit(ctx, g.generation, pending)
	if err == nil {
		g.progress.recorded(pending)
	}
	if rebalancing(err) {
		// While the members join, commits are taken: all have joined but this
		// one.
		g.stale = true
	}
	if g.follow(err, &g.commits, "cannot commit offsets; trying again") {
		for topic := range topicsOf(pending) {
			g.consumer.runner.Observer().AcknowledgementFailed(g.consumer.config.Inbox.Consumer, topic)
		}
	}
	return err == nil
}

// topicsOf are those of partitions.
func topicsOf(partitions map[partitionID]position) map[string]bool {
	topics := make(map[string]bool)
	for id := range partitions {
		topics[id.topic] = true
	}
	return topics
}

// tellLag tells the observer how far behind this member's partitions are.
func (g *generation) tellLag() {
	if g.consumer.config.Inbox.Observer == nil {
		return
	}
	for id, lag := range g.progress.lags() {
		g.consumer.runner.Observer().Lag(g.consumer.config.Inbox.Consumer, id.topic, id.id, lag)
	}
}

// follow draws the conclusions from an answer of the coordinator. It reports
// whether the coordinator could not do what it was asked for, or did not answer.
func (g *generation) follow(err error, trouble *trouble, what string) (failed bool) {
	switch {
	case err == nil:
		g.heard = time.Now()
		trouble.over(g.logger, "the coordinator answers again")
		g.consumer.reach.group(true)
	case rebalancing(err):
		g.heard = time.Now()
		g.end(errRebalance)
	case expelled(err):
		g.stale = true
		g.end(fmt.Errorf("the group goes on without this member: %w", err))
		return true
	case errors.Is(err, context.Canceled) || errors.Is(err, errRebalance) || errors.Is(err, errNewcomers):
		// Cut off because the generation has ended.
	default:
		trouble.begins(g.logger, what, err)
		g.consumer.reach.group(false)
		if time.Since(g.heard) > g.consumer.config.SessionTimeout {
			// The others have these partitions by now.
			g.end(fmt.Errorf("the coordinator has not answered for SessionTimeout: %w", err))
		}
		return true
	}
	return false
}

// flush is the last commit.
func (g *generation) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	for tries := 1; !g.commit(ctx) && !g.stale && g.consumer.pause(ctx, tries); tries++ {
	}
	if pending := g.progress.pending(); len(pending) > 0 {
		g.logger.Warn("offsets could not be committed: their messages come again, and are recognised", "partitions", len(pending))
	}
}
