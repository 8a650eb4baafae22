package e2e_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// survivesFaults lets the broker fail under load in each way, and checks
// everything.
func survivesFaults(t *testing.T, stage *scenario.Stage, faults ...func()) {
	t.Helper()
	fleet := stage.StartFleet(2)
	sampler := stage.StartSampler()
	// Starting a broker takes long on a busy machine, and all that time rows come.
	load := stage.StartLoad(scenario.Workload{Rate: 100})
	for _, fault := range faults {
		flowsOn(t, stage)
		fault()
	}
	flowsOn(t, stage)
	load.Stop()
	stage.Drain(30 * time.Second)
	fleet.Stop()
	sampler.Stop()
	stage.Verify(len(faults) * len(fleet) * stage.Config.InFlight())
	for _, relay := range fleet {
		if n := len(lines(relay.Log(), "a message was refused")); n > 0 {
			t.Errorf("%s blamed messages for the broker's absence, %d times", relay.Name, n)
		}
	}
}

// flowsOn waits until the broker, which may just be coming back, gets new
// records.
func flowsOn(t *testing.T, stage *scenario.Stage) {
	t.Helper()
	before := -1
	scenario.Await(t, 60*time.Second, "messages to flow", func() (bool, string) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		records, err := stage.Log.Records(ctx)
		if err != nil {
			return false, err.Error()
		}
		if before < 0 {
			before = len(records)
		}
		return len(records) > before, "the broker gets nothing"
	})
}

// outage is how long a broker stays away.
const outage = 500 * time.Millisecond

func TestKafkaRestartsUnderLoad(t *testing.T) {
	t.Parallel()
	broker := ownKafka(t)
	log := scenario.NewKafkaTopics(t, broker.Brokers(), 1, 6)
	stage := scenario.NewStage(t, scenario.NewDatabase(t), log, scenario.Settings{"outbox.batch_size": 100})
	survivesFaults(t, stage,
		func() {
			try(t, broker.Stop())
			time.Sleep(outage)
			try(t, broker.Start(t.Context()))
		},
		func() {
			broker.Kill()
			time.Sleep(outage)
			try(t, broker.Start(t.Context()))
		})
}

func TestRabbitMQFailsUnderLoad(t *testing.T) {
	for _, order := range scenario.Lanes(t, rabbitOrders...) {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			broker := startRabbit(t, servers.RabbitMQOptions{})
			log := scenario.NewRabbitQueue(t, broker.URL("/"), nil)
			stage := scenario.NewStage(t, scenario.NewDatabase(t), log, scenario.Settings{
				"outbox.batch_size": 100, "outbox.publish_timeout": "3s", "failures.backoff.max": "1s", "sinks.main.rabbitmq.order": order,
			})
			survivesFaults(t, stage,
				func() { try(t, broker.CloseAllConnections(t.Context(), "maintenance")) },
				func() { memoryAlarm(t, stage, broker) },
				func() {
					try(t, broker.Pause())
					time.Sleep(2 * outage)
					try(t, broker.Resume())
				},
				func() {
					broker.Kill()
					time.Sleep(outage)
					try(t, broker.Start(t.Context()))
				})
		})
	}
}

// memoryAlarm makes the broker block publishers for a while, during which the
// relays hold no transaction open.
func memoryAlarm(t *testing.T, stage *scenario.Stage, broker *servers.RabbitMQ) {
	t.Helper()
	if _, err := broker.Control(t.Context(), "set_vm_memory_high_watermark", "0"); err != nil {
		t.Fatal(err)
	}
	scenario.Await(t, 20*time.Second, "the alarm to stop the relays", func() (bool, string) {
		before := publishedCount(t, stage)
		time.Sleep(outage)
		return publishedCount(t, stage) == before, "rows are still being marked"
	})
	idle(t, stage, outage)
	if _, err := broker.Control(t.Context(), "set_vm_memory_high_watermark", "0.4"); err != nil {
		t.Fatal(err)
	}
}

func publishedCount(t *testing.T, stage *scenario.Stage) int {
	t.Helper()
	return scenario.One[int](t, stage.Database, `SELECT count(*) FROM `+stage.Table+` WHERE published_at IS NOT NULL`)
}

// idle watches for a while that the relays hold no transaction open: at no look
// is there one that is older than a claim and its failed attempt may take.
func idle(t *testing.T, stage *scenario.Stage, duration time.Duration) {
	t.Helper()
	const open = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox-relay'
		AND state LIKE 'idle in transaction%'`
	// What was in flight when the broker went away has a few seconds.
	scenario.Await(t, 10*time.Second, "the claims in flight to end", func() (bool, string) {
		n := scenario.One[int](t, stage.Database, open)
		return n == 0, fmt.Sprintf("%d are open", n)
	})
	// A sink that is there has its claims meanwhile.
	const old = open + ` AND clock_timestamp() - xact_start > interval '1 s'`
	for deadline := time.Now().Add(duration); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if n := scenario.One[int](t, stage.Database, old); n > 0 {
			t.Errorf("%d transactions of the relay stay open while the broker is away", n)
			return
		}
	}
}

// Kafka is away when the relay starts, and comes later.
func TestBrokerThatIsAwayAtTheStart(t *testing.T) {
	t.Parallel()
	broker := ownKafka(t)
	stage, both := newBothStage(t, scenario.NewKafkaTopics(t, broker.Brokers(), 1, 6), scenario.Settings{"log.level": "info"})
	try(t, broker.Stop())
	relay := stage.Start() // ready: a broker that is away is no reason not to be

	var orders, mails []scenario.Row
	for _, key := range []string{"a", "b", "c"} {
		orders = append(orders, insert(stage, both.order(), key, "1", "2", "3")...)
		mails = append(mails, insert(stage, both.mail(), key, "1", "2", "3")...)
	}
	published(t, stage, mails...) // the other sink's flow on
	logs(t, relay, "sink is away", "sink=main", "connection refused")
	idle(t, stage, 6*time.Second)
	unmarked(t, stage, orders...)
	if found := lines(relay.Log(), "sink=main"); len(found) != 1 {
		t.Errorf("%d lines about the sink that is away, want one: %q", len(found), found)
	}
	if !relay.Ready() {
		t.Error("a broker that is away makes the relay not ready")
	}
	status := relay.Command("status")
	expect(t, status, 0, "sink main  down: ")
	expect(t, status, 0, "sink mail  up")
	expect(t, relay.Command("check"), 1, "error    sink main: ")

	try(t, broker.Start(t.Context()))
	stage.Drain(30 * time.Second)
	logs(t, relay, "sink is back", "sink=main")
	expect(t, relay.Command("check"), 0, "sink main: reached")
	relay.Stop()
	scenario.Await(t, 20*time.Second, "the broker to be readable", func() (bool, string) {
		_, err := both.Records(t.Context())
		return err == nil, fmt.Sprint(err)
	})
	stage.Verify(0)
}
