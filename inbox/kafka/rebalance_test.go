package kafka_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/kafka"
)

// Members come and go under load; nothing is lost, done twice or out of order.
func TestMembersComeAndGo(t *testing.T) {
	s := newStage(t, 6)
	const total = 3000
	var group sync.WaitGroup
	group.Go(func() {
		for n := 0; n < total; n += 100 {
			s.publish(n, n+100, 6)
			time.Sleep(50 * time.Millisecond)
		}
	})
	defer group.Wait()
	members := []*consumer{start(t, s.config(effect)), start(t, s.config(effect))}
	for _, step := range []struct{ stop, start int }{{0, 2}, {1, 0}, {2, 1}, {1, 2}, {0, 1}} {
		before := s.db.Int(t, `SELECT count(*) FROM effects`)
		for range step.start {
			members = append(members, start(t, s.config(effect)))
		}
		for range step.stop {
			members[0].mustStop()
			members = members[1:]
		}
		await(t, "the group goes on", func() bool {
			n := s.db.Int(t, `SELECT count(*) FROM effects`)
			return n == total || n > before+100
		})
	}
	s.awaitEffects(total)
	group.Wait()
	var assigned int64
	await(t, "the members share the partitions", func() bool {
		assigned = 0
		for _, m := range members {
			assigned += m.Stats().Partitions
		}
		return assigned == 6
	})
	for _, m := range members {
		m.mustStop()
	}
	s.checkEffects(total)
	if got := s.committed(6); !slices.Equal(got, slices.Repeat([]int64{total / 6}, 6)) {
		t.Errorf("committed %v", got)
	}
	checkGoroutines(t)
}

// A handler that is at work when the group rebalances finishes, is committed,
// and its message is not delivered again.
func TestRebalanceWaitsForTheHandler(t *testing.T) {
	s := newStage(t, 2)
	s.publish(0, 2, 2)
	entered, release := make(chan struct{}, 2), make(chan struct{})
	c := start(t, s.config(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		entered <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
			return ctx.Err()
		}
		return effect(ctx, tx, m)
	}))
	<-entered
	<-entered
	other := start(t, s.config(effect))
	// The group waits for the first member, so nobody has a partition anew.
	time.Sleep(time.Second)
	if n := other.Stats().Partitions; n != 0 {
		t.Fatalf("the newcomer has %d partitions while a handler is at work", n)
	}
	close(release)
	await(t, "each member has a partition", func() bool { return c.Stats().Partitions == 1 && other.Stats().Partitions == 1 })
	s.awaitEffects(2)
	c.mustStop()
	other.mustStop()
	s.checkEffects(2)
	if n := c.Stats().Duplicates + other.Stats().Duplicates; n != 0 {
		t.Errorf("%d duplicates", n)
	}
}

// A member whose network is gone keeps its handler; the others go on in the
// meantime, and no message has two effects.
func TestMemberThatIsCutOff(t *testing.T) {
	s := newStage(t, 2)
	s.publish(0, 200, 2)
	network := &network{}
	config := s.config(effect)
	config.Dialer = &kafkago.Dialer{DialFunc: network.dial}
	config.SessionTimeout = 6 * time.Second
	config.Handler = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if _, err := tx.Exec(ctx, `SELECT pg_sleep(0.01)`); err != nil {
			return err
		}
		return effect(ctx, tx, m)
	}
	c := start(t, config)
	s.awaitEffects(20)
	network.cut()
	healthy := config
	healthy.Dialer = nil
	other := start(t, healthy)
	await(t, "the other member has both partitions", func() bool { return other.Stats().Partitions == 2 })
	s.awaitEffects(200)
	network.heal()
	await(t, "the first member is back", func() bool { return c.Stats().Partitions == 1 && other.Stats().Partitions == 1 })
	c.mustStop()
	other.mustStop()
	s.checkEffects(200)
	checkGoroutines(t)
}

// network can be cut: connections break and no new ones are made.
type network struct {
	mu    sync.Mutex
	down  bool
	conns []net.Conn
}

func (n *network) dial(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return nil, errors.New("the network is down")
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, address)
	if err == nil {
		n.conns = append(n.conns, conn)
	}
	return conn, err
}

func (n *network) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = true
	for _, conn := range n.conns {
		_ = conn.Close()
	}
	n.conns = nil
}

func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = false
}

// A stop while brokers are away ends soon all the same.
func TestStopWithoutBrokers(t *testing.T) {
	s := newStage(t, 1)
	s.publish(0, 10, 1)
	network := &network{}
	config := s.config(effect)
	config.Dialer = &kafkago.Dialer{DialFunc: network.dial}
	c := start(t, config)
	s.awaitEffects(10)
	network.cut()
	c.mustStop()
	checkGoroutines(t)
}

func TestBrokersThatAreNotThere(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// It takes connections and never answers.
	defer func() { _ = listener.Close() }()
	var accepted atomic.Int64
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			go func() { _, _ = io.Copy(io.Discard, conn) }()
		}
	}()
	log := &syncBuffer{}
	c := start(t, kafka.Config{
		Brokers: []string{listener.Addr().String()}, Group: "g", Topics: []string{"t"}, Inbox: &inbox.Inbox{Consumer: "c"},
		DB: fakeBeginner{}, Handler: effect, Dialer: &kafkago.Dialer{Timeout: 200 * time.Millisecond}, Logger: newLogger(log),
	})
	await(t, "it has tried twice", func() bool { return accepted.Load() >= 2 })
	if !strings.Contains(log.String(), "cannot join the group") {
		t.Errorf("the log says %q", log)
	}
	c.mustStop()
	checkGoroutines(t)
}

// Handlers that do not end in time are interrupted, which Run reports.
func TestStopInterrupts(t *testing.T) {
	s := newStage(t, 1)
	s.publish(0, 1, 1)
	entered := make(chan struct{}, 1)
	config := s.config(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if err := effect(ctx, tx, m); err != nil {
			return err
		}
		entered <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	config.StopTimeout = 100 * time.Millisecond
	c := start(t, config)
	<-entered
	if err := c.stop(); err == nil || !strings.Contains(err.Error(), "StopTimeout") {
		t.Errorf("Run returned %v", err)
	}
	if got := s.committed(1); got[0] > 0 {
		t.Errorf("committed %v", got)
	}
	c = start(t, s.config(effect))
	s.awaitEffects(1)
	c.mustStop()
	s.checkEffects(1)
}

// A group may have members of other clients, whoever leads it.
func TestGroupWithAnotherClient(t *testing.T) {
	for _, leads := range []bool{true, false} {
		s := newStage(t, 2)
		other := func() (stop func()) {
			reader := kafkago.NewReader(kafkago.ReaderConfig{
				Brokers: s.brokers, GroupID: s.group, GroupTopics: []string{s.topic},
				HeartbeatInterval: 200 * time.Millisecond, JoinGroupBackoff: 200 * time.Millisecond, MaxWait: 200 * time.Millisecond,
			})
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for ctx.Err() == nil {
					_, _ = reader.ReadMessage(ctx)
				}
			}()
			return func() {
				cancel()
				<-ended
				_ = reader.Close()
			}
		}
		var c *consumer
		var stop func()
		if leads {
			c = start(t, s.config(effect))
			await(t, "it has both partitions", func() bool { return c.Stats().Partitions == 2 })
			stop = other()
		} else {
			stop = other()
			await(t, "the other one is a member", func() bool {
				response, err := s.client.DescribeGroups(t.Context(), &kafkago.DescribeGroupsRequest{GroupIDs: []string{s.group}})
				return err == nil && len(response.Groups) == 1 && len(response.Groups[0].Members) == 1 && response.Groups[0].GroupState == "Stable"
			})
			c = start(t, s.config(effect))
		}
		await(t, "each has a partition", func() bool { return c.Stats().Partitions == 1 })
		stop()
		await(t, "it has both partitions again", func() bool { return c.Stats().Partitions == 2 })
		s.publish(0, 20, 2)
		s.awaitEffects(20)
		c.mustStop()
	}
}
