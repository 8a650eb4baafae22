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

	// ended ends when the group has another generation, which end says.
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
// ends. When it returns cooperative members go on with theirs, and join again;
// of others nothing runs any more. The error is for Run's caller, and only there
// when ctx has ended.
func (c *Consumer) serve(ctx context.Context, m *member, assigned *assignment) error {
	g := &generation{
		assignment: assigned, consumer: c, member: m, progress: m.crew.progress,
		logger: c.logger.With("generation", assigned.generation), heard: time.Now(),
	}
	m.crew.last = g
	g.ended, g.end = context.WithCancelCause(ctx)
	g.announce()
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer g.end(nil)
	if !c.asked {
		c.asked = true
		watchers.Go(func() { c.warnOfRetention(g.ended, m.topics.wanted) })
	}
	c.reach.read(m.topics.wanted)
	if assigned.counts != nil || c.config.TopicPattern != nil || c.config.InstanceID != "" {
		wanted := slices.Clone(m.topics.wanted)
		watchers.Go(func() { g.watch(wanted) })
	}
	if moved := m.crew.assign(ctx, g); len(moved) > 0 {
		late := g.giveUp(ctx, moved, "other members get them")
		if ctx.Err() == nil {
			return nil // and join again: now they can be assigned
		}
		return g.stop(ctx, late)
	}
	g.keep(ctx, g.ended.Done(), nil, nil)
	if because := context.Cause(g.ended); ctx.Err() == nil && c.config.cooperative() &&
		(errors.Is(because, errRebalance) || errors.Is(because, errNewcomers)) {
		g.commit(ctx) // joining may take its time
		return nil
	}
	return g.stop(ctx, false)
}

// stop gives up all partitions.
func (g *generation) stop(ctx context.Context, late bool) error {
	because := context.Cause(g.ended)
	if ctx.Err() != nil {
		because = errStop
	}
	late = g.giveUp(ctx, g.member.crew.running(), because) || late
	if late && ctx.Err() != nil {
		return fmt.Errorf("stopped after StopTimeout (%s): handlers had to be interrupted, their messages come again", g.consumer.config.StopTimeout)
	}
	return nil
}

// giveUp ends the processing of partitions, and commits how far it went. It
// reports whether handlers had to be interrupted.
func (g *generation) giveUp(ctx context.Context, partitions []partitionID, because any) (late bool) {
	crew := g.member.crew
	g.logger.Info("giving up the partitions", "partitions", names(partitions), "because", because)
	crew.end(partitions, errRebalance)
	patience := time.NewTimer(g.consumer.config.StopTimeout)
	defer patience.Stop()
	late = g.keep(ctx, crew.idle(partitions), patience.C, func() { crew.interrupt(partitions) })
	g.flush(ctx, partitions)
	crew.drop(partitions)
	return late
}

// keep sends heartbeats and commits offsets until it is done. It is the only
// one that talks to the coordinator. Members at work are kept in the group: the
// coordinator waits for them, RebalanceTimeout long.
func (g *generation) keep(ctx context.Context, done <-chan struct{}, patience <-chan time.Time, interrupt func()) (late bool) {
	config := &g.consumer.config
	heartbeats := time.NewTicker(config.HeartbeatInterval)
	defer heartbeats.Stop()
	commits := time.NewTicker(config.CommitInterval)
	defer commits.Stop()
	for {
		// What is asked while the generation lasts need not outlast it.
		talk := g.ended
		if g.ended.Err() != nil {
			talk = context.WithoutCancel(ctx)
		}
		select {
		case <-done:
			return late
		case <-patience:
			late = true
			interrupt()
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
	g.logger.Info("consuming", "partitions", names(slices.Collect(maps.Keys(g.partitions))))
	for topic, n := range g.counts {
		if n == 0 {
			g.logger.Warn("the topic does not exist, or may not be described by this user: waiting for it", "topic", topic)
		}
	}
}

func names(partitions []partitionID) (names []string) {
	for _, id := range partitions {
		names = append(names, id.String())
	}
	slices.Sort(names)
	return names
}

// watch ends the generation when topics have other partitions than the leader
// has assigned, or a pattern matches other topics. A static member that comes
// back is not told that it leads: it watches its own topics.
func (g *generation) watch(wanted []string) {
	counts := g.counts
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		select {
		case <-g.ended.Done():
			return
		case <-ticker.C:
		}
		if changed, err := g.member.topics.refresh(g.ended); err == nil && changed {
			g.end(errNewcomers)
			return
		}
		topics := wanted
		if g.counts != nil {
			topics = slices.Sorted(maps.Keys(g.counts))
		}
		known, err := g.consumer.cluster.of(g.ended, topics)
		if err != nil {
			continue
		}
		found := known.counts(topics)
		if counts == nil {
			counts = found
		}
		if !maps.Equal(found, counts) {
			g.end(errNewcomers)
			return
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
		g.member.crew.fenced(err)
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

// flush is the last commit of partitions of which nothing runs. Others may go
// on.
func (g *generation) flush(ctx context.Context, partitions []partitionID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	for tries := 1; !g.commit(ctx) && !g.stale && g.consumer.pause(ctx, tries); tries++ {
	}
	pending := g.progress.pending()
	lost := slices.DeleteFunc(slices.Clone(partitions), func(id partitionID) bool {
		_, left := pending[id]
		return !left
	})
	if len(lost) > 0 {
		g.logger.Warn("offsets could not be committed: their messages come again, and are recognised", "partitions", names(lost))
	}
}
