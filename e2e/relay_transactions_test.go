package e2e_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/e2e/scenario"
)

func TestRollbacksAndAbortedSavepointsAreNotPublished(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, nil)
	relay := stage.Start()
	stage.Load(scenario.Workload{Writers: 12, Rate: 400}, 4*time.Second)
	stage.Drain(20 * time.Second)
	relay.Stop()
	stage.Verify(0)
}

// A row whose id is lower than those published before it must not be lost,
// however long its transaction takes.
func TestCommitsOutOfIDOrder(t *testing.T) {
	t.Parallel()
	commitLate(t, 4*time.Second, scenario.Workload{Keys: 500})
}

func TestTransactionHeldOpenForAMinute(t *testing.T) {
	t.Parallel()
	commitLate(t, time.Minute, scenario.Workload{Keys: 500, Rate: 20})
}

// commitLate holds a transaction with rows of some keys open while others are
// published, then commits it.
func commitLate(t *testing.T, hold time.Duration, workload scenario.Workload) {
	t.Helper()
	stage := scenario.NewKafkaStage(t, nil)
	relay := stage.Start()
	load := stage.StartLoad(workload)

	tx, err := stage.Database.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	var late []scenario.Row
	for _, key := range []string{"late-1", "late-2", "late-3", ""} {
		late = append(late, insertIn(t, stage, tx, key))
	}

	key := "early"
	early := stage.Insert(stage.Topic(), &key, "committed before")
	if early.ID < late[0].ID {
		t.Fatalf("the later insert has id %d, the earlier one %d", early.ID, late[0].ID)
	}
	stage.AwaitRecord(early.MessageID, 20*time.Second)
	time.Sleep(hold) // the scenario: a long transaction
	for _, row := range late {
		if stage.Holds(row.MessageID) {
			t.Errorf("id %d was published before its commit", row.ID)
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, row := range late {
		stage.AwaitRecord(row.MessageID, 10*time.Second)
	}
	load.Stop()
	stage.Drain(20 * time.Second)
	relay.Stop()
	stage.Verify(0)
}

// insertIn writes a row in the transaction; the key "" stands for null.
func insertIn(t *testing.T, stage *scenario.Stage, tx pgx.Tx, key string) scenario.Row {
	t.Helper()
	row := scenario.Row{Topic: stage.Topic(), Key: key, Keyed: key != ""}
	if err := stage.InsertIn(t.Context(), tx, &row, []byte("payload of "+key)); err != nil {
		t.Fatal(err)
	}
	return row
}
