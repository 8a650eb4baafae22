package groups

import (
	"strings"
	"syscall"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/inbox/kafka"
)

// javaConsumer is Kafka's own console consumer, with cooperative-sticky.
func (s *stage) javaConsumer() (stop func()) {
	s.t.Helper()
	command, err := s.kafka.Tool("org.apache.kafka.tools.consumer.ConsoleConsumer",
		"--bootstrap-server", strings.Join(s.kafka.Brokers(), ","), "--topic", s.topic, "--group", "shipping",
		"--consumer-property", "partition.assignment.strategy=org.apache.kafka.clients.consumer.CooperativeStickyAssignor",
		"--consumer-property", "heartbeat.interval.ms=300",
		"--consumer-property", "auto.offset.reset=earliest")
	if err != nil {
		s.t.Fatal(err)
	}
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	output := newLog(s.t)
	command.Stdout, command.Stderr = output, output
	if err := command.Start(); err != nil {
		s.t.Fatal(err)
	}
	done := false
	stop = func() {
		if !done {
			done = true
			_ = command.Process.Signal(syscall.SIGTERM)
			_ = command.Wait()
		}
	}
	s.t.Cleanup(stop)
	return stop
}

// Members in Java and this one rebalance cooperatively with each other, whoever
// leads.
func TestCooperativeGroupWithJava(t *testing.T) {
	t.Parallel()
	s := newStage(t, servers.KafkaOptions{}, 4)
	log := newLog(t)
	config := s.config(log)
	config.GroupBalancers = []kafkago.GroupBalancer{kafka.CooperativeSticky{}}
	ours, stop := run(t, config)
	await(t, "this member has all", func() bool { return ours.Stats().Partitions == 4 })
	stopJava := s.javaConsumer()
	await(t, "Java's member has two", func() bool { return ours.Stats().Partitions == 2 })
	s.publish(0, 40, 4)
	await(t, "this member's are processed", func() bool { return s.effects() >= 20 })
	if n := len(log.lines("giving up the partitions")); n != 1 {
		t.Errorf("partitions were given up %d times", n)
	}
	// Now Java's member leads.
	stop()
	other, stopOther := run(t, config)
	await(t, "each has two", func() bool { return other.Stats().Partitions == 2 })
	s.publish(40, 80, 4)
	await(t, "this member's are processed again", func() bool { return s.effects() >= 40 })
	stopJava()
	await(t, "this member has all again", func() bool { return other.Stats().Partitions == 4 })
	time.Sleep(100 * time.Millisecond)
	stopOther()
	if twice := s.count(`SELECT count(*) FROM (SELECT FROM effects GROUP BY message_id HAVING count(*) > 1) x`); twice != 0 {
		t.Errorf("%d messages had more than one effect", twice)
	}
}
