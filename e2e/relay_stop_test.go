package e2e_test

import (
	"net/url"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/proxy"
	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

func kafkaBrokers() []string { return servers.FromEnvironment().KafkaBrokers }

func TestGracefulStopsUnderLoadCauseNoDuplicates(t *testing.T) {
	stages := map[string]func(testing.TB, scenario.Settings) *scenario.Stage{
		"kafka": scenario.NewKafkaStage, "rabbitmq": scenario.NewRabbitStage,
	}
	for name, newStage := range stages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stage := newStage(t, scenario.Settings{"outbox.batch_size": 30})
			fleet := stage.StartFleet(2)
			load := stage.StartLoad(scenario.Workload{Rate: 400})
			for i := range 5 {
				flows(t, stage)
				relay := fleet[i%len(fleet)]
				relay.Stop()
				relay.Start()
			}
			fleet.Stop() // in mid-flight once more
			load.Stop()
			last := stage.Start()
			stage.Drain(20 * time.Second)
			last.Stop()
			stage.Verify(0)
		})
	}
}

func TestStopWhileTheBrokerHangs(t *testing.T) {
	t.Parallel()
	broker, err := servers.StartKafka(t.Context(), servers.KafkaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, broker)
	log := scenario.NewKafkaTopics(t, broker.Brokers(), 1, 6)
	stage := scenario.NewStage(t, scenario.NewDatabase(t), log, scenario.Settings{"shutdown_timeout": "3s"})
	relay := stage.Start()
	key := "key"
	row := stage.Insert(stage.Topic(), &key, "before")
	stage.AwaitRecord(row.MessageID, 20*time.Second)

	// hang leaves the relay with a message that the broker does not answer.
	hang := func() {
		t.Helper()
		if err := broker.Pause(); err != nil {
			t.Fatal(err)
		}
		stage.Insert(stage.Topic(), &key, "in flight")
		scenario.Await(t, 10*time.Second, "a claim", func() (bool, string) {
			claims := scenario.One[int](t, stage.Database, `
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox-relay'
    AND state = 'idle in transaction' AND state_change < clock_timestamp() - interval '300 ms'`)
			return claims > 0, "nothing is claimed"
		})
	}
	resume := func() {
		t.Helper()
		if err := broker.Resume(); err != nil {
			t.Fatal(err)
		}
	}

	hang()
	began := time.Now()
	relay.Terminate()
	code, ended := relay.ExitCode(20 * time.Second)
	took := time.Since(began)
	if !ended || code != 0 {
		t.Fatalf("ended: %t, exit code %d, after %v, want 0", ended, code, took)
	}
	if took < 2*time.Second || took > 8*time.Second {
		t.Errorf("stopping took %v with a shutdown_timeout of 3s", took)
	}
	// What the broker did not answer it will not even read.
	broker.Kill()
	if err := broker.Start(t.Context()); err != nil {
		t.Fatal(err)
	}

	relay.Start()
	stage.Drain(30 * time.Second)
	hang()
	relay.Terminate()
	if code, ended := relay.ExitCode(500 * time.Millisecond); ended {
		t.Fatalf("ended with exit code %d although the broker had not answered", code)
	}
	began = time.Now()
	relay.Terminate()
	if _, ended := relay.ExitCode(time.Second); !ended {
		t.Errorf("runs %v after a second signal", time.Since(began))
	}
	resume()
	relay.Start()
	stage.Drain(30 * time.Second)
	relay.Stop()
	stage.Verify(2 * stage.Config.InFlight())
}

// A connection whose peer vanished does not hold up the end: pgxpool alone would
// wait for it for 15 s.
func TestStopBesideHalfOpenConnections(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, nil)
	server, err := url.Parse(stage.Database.URL)
	try(t, err)
	way, err := proxy.New(server.Host)
	try(t, err)
	t.Cleanup(func() { _ = way.Close() })
	relay := stage.Relay(scenario.Settings{"database.url": elsewhere(t, stage.Database.URL, way.Address())})
	relay.Start()
	key := "key"
	stage.AwaitRecord(stage.Insert(stage.Topic(), &key, "before").MessageID, 30*time.Second)
	stage.Drain(30 * time.Second) // to mark something would take its own time
	if way.HalfOpen() == 0 {
		t.Fatal("the relay has no connection through the proxy")
	}
	began := time.Now()
	relay.Terminate()
	if code, ended := relay.ExitCode(45 * time.Second); !ended || code != 0 {
		t.Fatalf("ended: %t, exit code %d, want 0", ended, code)
	}
	if took := time.Since(began); took > 12*time.Second {
		t.Errorf("stopping took %v, as long as the dead connections", took)
	}
}
