package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/outbox"
)

func TestOrderingNone(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, scenario.Settings{"outbox.ordering": "none", "outbox.batch_size": 20})
	survivesKills(t, stage, 2, 4*time.Second)
}

// A total order is one of commits only if ids commit in order, which one
// writer sees to.
func TestOrderingTotal(t *testing.T) {
	t.Parallel()
	log := scenario.NewKafkaTopics(t, kafkaBrokers(), 1, 1)
	stage := scenario.NewStage(t, scenario.NewDatabase(t), log, scenario.Settings{"outbox.ordering": "total", "outbox.batch_size": 20})
	fleet := stage.StartFleet(2)
	sampler := stage.StartSampler()
	load := stage.StartLoad(scenario.Workload{Writers: 1, Rate: 100})
	kills := stage.KillLoop(fleet, 4*time.Second)
	load.Stop()
	stage.Drain(30 * time.Second)
	fleet.Stop()
	sampler.Stop()
	stage.Verify(kills * stage.Config.InFlight())
}

func TestSeveralTopicsInOneOutbox(t *testing.T) {
	t.Parallel()
	log := scenario.NewKafkaTopics(t, kafkaBrokers(), 3, 2)
	stage := scenario.NewStage(t, scenario.NewDatabase(t), log, smallBatches)
	survivesKills(t, stage, 2, 4*time.Second)
}

// A delayed row comes at its time and lets later rows of its key pass.
func TestDelayedRows(t *testing.T) {
	t.Parallel()
	const delay = 3 * time.Second
	stage := scenario.NewKafkaStage(t, nil)
	relay := stage.Start()
	load := stage.StartLoad(scenario.Workload{Rate: 50})
	for i := range 20 {
		insertDelayed(t, stage, fmt.Sprintf("delayed-%d", i%3), delay)
	}
	key := "delayed-1"
	next := stage.Insert(stage.Topic(), &key, "not delayed")
	stage.AwaitRecord(next.MessageID, delay)
	if early := delayedRecords(stage); early > 0 && scenario.One[bool](t, stage.Database, `SELECT min(available_at) > clock_timestamp() FROM `+stage.Table) {
		t.Errorf("%d delayed rows are in the broker before their time", early)
	}
	scenario.Await(t, delay+10*time.Second, "the delayed rows", func() (bool, string) {
		n := delayedRecords(stage)
		return n == 20, fmt.Sprintf("%d of 20 are in the broker", n)
	})
	load.Stop()
	stage.Drain(10 * time.Second)
	relay.Stop()
	stage.Verify(0)
	early := scenario.One[int](t, stage.Database, `SELECT count(*) FROM `+stage.Table+` WHERE published_at < available_at`)
	late := scenario.One[float64](t, stage.Database, `SELECT max(extract(epoch FROM published_at - available_at))::float8 FROM `+stage.Table)
	if early > 0 || late > 5 {
		t.Errorf("%d rows were published before their time, one %.1f s after it", early, late)
	}
}

// insertDelayed commits a row that is due after the delay.
func insertDelayed(t *testing.T, stage *scenario.Stage, key string, delay time.Duration) {
	t.Helper()
	stage.Database.Exec(t, `
WITH o AS (INSERT INTO `+stage.Table+` (topic, key, payload, available_at) VALUES ($1, $2, 'delayed', clock_timestamp() + $3::interval) RETURNING *)
INSERT INTO truth (message_id, id, topic, key, digest, delayed) SELECT message_id, id, topic, key, $4, true FROM o`,
		stage.Topic(), key, delay.String(), scenario.Digest([]byte("delayed")))
}

func delayedRecords(stage *scenario.Stage) (n int) {
	seen := map[outbox.UUID]bool{}
	for _, record := range stage.Records() {
		if string(record.Payload) == "delayed" && !seen[record.MessageID] {
			seen[record.MessageID] = true
			n++
		}
	}
	return n
}

func TestPruneRemovesOnlyWhatIsPastRetention(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, scenario.Settings{"outbox.retention": "1h"})
	relay := stage.Start()
	stage.Load(scenario.Workload{}, 2*time.Second)
	stage.Drain(20 * time.Second)
	relay.Stop()
	stage.Verify(0)
	old := stage.Database.Exec(t, `UPDATE `+stage.Table+` SET published_at = now() - interval '61 minutes' WHERE id % 2 = 0`)
	young := scenario.One[int64](t, stage.Database, `SELECT count(*) FROM `+stage.Table+` WHERE id % 2 <> 0`)
	// Pending rows stay, however old.
	stage.Database.Exec(t, `INSERT INTO `+stage.Table+` (topic, created_at) VALUES ($1, now() - interval '1 year')`, stage.Topic())

	result := relay.Command("prune")
	if result.Code != 0 || !strings.Contains(result.Stdout, fmt.Sprintf("removed %d ", old)) {
		t.Errorf("prune should have removed %d rows: %s", old, result)
	}
	left := scenario.One[int64](t, stage.Database, `SELECT count(*) FROM `+stage.Table)
	past := scenario.One[int64](t, stage.Database, `SELECT count(*) FROM `+stage.Table+` WHERE published_at < now() - interval '1 hour'`)
	if left != young+1 || past != 0 {
		t.Errorf("%d rows are left, %d of them past retention, want %d and 0", left, past, young+1)
	}
}

// idleFor is how long a relay rests before its pauses are some seconds long.
const idleFor = 8 * time.Second

func TestNotificationWakesAnIdleRelay(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, scenario.Settings{"outbox.poll_interval": "60s"})
	relay := stage.Start()
	key := "key"
	stage.AwaitRecord(stage.Insert(stage.Topic(), &key, "first").MessageID, 20*time.Second)
	time.Sleep(idleFor) // the scenario: the relay is idle

	began := time.Now()
	tx, err := stage.Database.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	row := insertIn(t, stage, tx, key)
	if _, err := tx.Exec(t.Context(), `NOTIFY outbox`); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	stage.AwaitRecord(row.MessageID, 20*time.Second)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the row took %v although its writer notified the relay", took)
	}
	relay.Stop()
	stage.Verify(0)
}

func TestIdleRelayFindsARowWithoutNotification(t *testing.T) {
	t.Parallel()
	const interval = 2 * time.Second
	stage := scenario.NewKafkaStage(t, scenario.Settings{"outbox.poll_interval": interval.String(), "outbox.notify": false})
	relay := stage.Start()
	time.Sleep(idleFor)
	key := "key"
	row := stage.Insert(stage.Topic(), &key, "nobody is told")
	stage.AwaitRecord(row.MessageID, interval+2*time.Second)
	relay.Stop()
	stage.Verify(0)
}
