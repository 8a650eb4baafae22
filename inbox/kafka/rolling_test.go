package kafka_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/kafka"
)

// pauses measures for how long each partition has no effect.
type pauses struct {
	mu      sync.Mutex
	last    map[int32]time.Time
	longest map[int32]time.Duration
}

func (p *pauses) effect(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	if err := effect(ctx, tx, m); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if last, ok := p.last[m.Source.Partition]; ok {
		p.longest[m.Source.Partition] = max(p.longest[m.Source.Partition], now.Sub(last))
	}
	p.last[m.Source.Partition] = now
	return nil
}

// Three members are restarted one after another under load, and the partitions
// go on: see the longest pause.
func TestRollingRestart(t *testing.T) {
	for name, balancers := range map[string][]kafkago.GroupBalancer{
		"cooperative": {kafka.CooperativeSticky{}},
		"both":        {kafka.CooperativeSticky{}, kafkago.RangeGroupBalancer{}},
		"range":       nil,
	} {
		t.Run(name, func(t *testing.T) {
			const partitions = 6
			s := newStage(t, partitions)
			p := &pauses{last: make(map[int32]time.Time), longest: make(map[int32]time.Duration)}
			config := s.config(p.effect)
			config.GroupBalancers = balancers
			config.HeartbeatInterval = 0 // the default
			var members []*consumer
			for range 3 {
				members = append(members, start(t, config))
			}
			settled := func() bool {
				n := make([]int64, 0, 3)
				for _, m := range members {
					n = append(n, m.Stats().Partitions)
				}
				return slices.Equal(n, []int64{2, 2, 2})
			}
			await(t, "the members share the partitions", settled)
			ctx, cancel := context.WithCancel(t.Context())
			var load sync.WaitGroup
			published := 0
			load.Go(func() {
				for ctx.Err() == nil {
					s.publish(published, published+partitions, partitions)
					published += partitions
					time.Sleep(10 * time.Millisecond)
				}
			})
			time.Sleep(time.Second)
			for i := range members {
				members[i].mustStop()
				time.Sleep(500 * time.Millisecond) // a process starts
				members[i] = start(t, config)
				await(t, "the members share the partitions again", settled)
			}
			cancel()
			load.Wait()
			s.awaitEffects(published)
			duplicates := int64(0)
			for _, m := range members {
				m.mustStop()
				duplicates += m.Stats().Duplicates
			}
			s.checkEffects(published)
			var longest time.Duration
			for _, d := range p.longest {
				longest = max(longest, d)
			}
			t.Logf("%s: a rolling restart of 3 members, %d messages: the longest pause of a partition is %s", name, published, longest)
			if duplicates > 0 {
				t.Errorf("%d duplicates after clean stops", duplicates)
			}
		})
	}
	checkGoroutines(t)
}

// A member that is cut off loses what it goes on with.
func TestCooperativeMemberThatIsCutOff(t *testing.T) {
	s := newStage(t, 2)
	s.publish(0, 200, 2)
	network := &network{}
	config := s.config(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if _, err := tx.Exec(ctx, `SELECT pg_sleep(0.01)`); err != nil {
			return err
		}
		return effect(ctx, tx, m)
	})
	config.GroupBalancers = []kafkago.GroupBalancer{kafka.CooperativeSticky{}}
	config.Dialer = &kafkago.Dialer{DialFunc: network.dial}
	config.SessionTimeout = 6 * time.Second
	c := start(t, config)
	s.awaitEffects(20)
	network.cut()
	config.Dialer = nil
	other := start(t, config)
	await(t, "the other member has both partitions", func() bool { return other.Stats().Partitions == 2 })
	s.awaitEffects(200)
	network.heal()
	await(t, "the first member is back", func() bool { return c.Stats().Partitions == 1 && other.Stats().Partitions == 1 })
	c.mustStop()
	other.mustStop()
	s.checkEffects(200)
	checkGoroutines(t)
}

// A static member that is back soon has its partitions again, and the others
// hear nothing of it.
func TestStaticMember(t *testing.T) {
	for name, balancers := range map[string][]kafkago.GroupBalancer{"range": nil, "cooperative": {kafka.CooperativeSticky{}}} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, 4)
			var logs [3]*syncBuffer
			member := func(i int, name string) *consumer {
				config := s.config(effect)
				config.InstanceID = name
				config.GroupBalancers = balancers
				logs[i] = &syncBuffer{}
				config.Logger = newLogger(logs[i])
				return start(t, config)
			}
			first, second := member(0, "pod-0"), member(1, "pod-1")
			await(t, "they share the partitions", func() bool { return first.Stats().Partitions == 2 && second.Stats().Partitions == 2 })
			s.publish(0, 100, 4)
			s.awaitEffects(100)
			before := strings.Count(logs[1].String(), "msg=consuming")
			first.mustStop()
			s.publish(100, 200, 4)
			again := member(0, "pod-0")
			s.awaitEffects(200)
			if n := again.Stats().Partitions; n != 2 {
				t.Errorf("it has %d partitions", n)
			}
			if after := strings.Count(logs[1].String(), "msg=consuming"); after != before {
				t.Errorf("the other one was rebalanced: %s", logs[1])
			}
			// Another process with the same name.
			usurper := member(2, "pod-0")
			select {
			case err := <-again.done:
				if err == nil || !strings.Contains(err.Error(), `another process has joined as InstanceID "pod-0"`) {
					t.Errorf("the first of two with the same InstanceID: %v", err)
				}
				again.once.Do(func() {})
			case <-time.After(patience):
				t.Error("the first of two with the same InstanceID goes on")
			}
			s.publish(200, 300, 4)
			s.awaitEffects(300)
			usurper.mustStop()
			second.mustStop()
			s.checkEffects(300)
		})
	}
}

// Who stops while the group rebalances commits how far it went all the same.
func TestStopWhileTheGroupRebalances(t *testing.T) {
	s := newStage(t, 6)
	config := s.config(effect)
	config.GroupBalancers = []kafkago.GroupBalancer{kafka.CooperativeSticky{}}
	steady := start(t, config)
	published := 0
	duplicates := int64(0)
	for round := range 10 {
		c := start(t, config)
		await(t, "both have partitions", func() bool { return c.Stats().Partitions == 3 && steady.Stats().Partitions == 3 })
		s.publish(published, published+60, 6)
		published += 60
		other := start(t, config) // the group rebalances for this one
		time.Sleep(time.Duration(round) * 60 * time.Millisecond)
		c.mustStop()
		other.mustStop()
		duplicates += c.Stats().Duplicates + other.Stats().Duplicates
	}
	s.awaitEffects(published)
	steady.mustStop()
	s.checkEffects(published)
	if duplicates += steady.Stats().Duplicates; duplicates > 0 {
		t.Errorf("%d duplicates after clean stops", duplicates)
	}
	checkGoroutines(t)
}
