package e2e_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/outbox"
)

// A row that an application deletes while it is pending is either published or
// deleted: the DELETE's row count tells which.
func TestRowCancelledByDelete(t *testing.T) {
	for _, onPublished := range []string{"mark", "delete"} {
		t.Run(onPublished, func(t *testing.T) {
			t.Parallel()
			stage := scenario.NewKafkaStage(t, scenario.Settings{"outbox.on_published": onPublished})
			fleet := stage.StartFleet(2)
			load := stage.StartLoad(scenario.Workload{Rate: 100})
			random := stage.Random(1)
			cancelled, late := 0, 0
			for i := range 400 {
				key := fmt.Sprintf("cancelled-%d", i%7)
				row := stage.Insert(stage.Topic(), &key, "to be cancelled")
				time.Sleep(time.Duration(random.IntN(8000)) * time.Microsecond)
				if cancel(t, stage, row) {
					cancelled++
				} else {
					late++
				}
			}
			load.Stop()
			stage.Drain(20 * time.Second)
			fleet.Stop()
			t.Logf("%d rows were cancelled, for %d it was too late", cancelled, late)
			if cancelled == 0 || late == 0 {
				t.Error("the race was always won by the same side, so nothing was tested")
			}
			stage.Verify(0)
		})
	}
}

// cancel deletes the row, and with it its truth, if it is still pending.
func cancel(t *testing.T, stage *scenario.Stage, row scenario.Row) bool {
	t.Helper()
	var message outbox.UUID
	err := stage.Database.Pool.QueryRow(t.Context(), `
WITH gone AS (DELETE FROM `+stage.Table+` WHERE id = $1 AND published_at IS NULL RETURNING message_id)
DELETE FROM truth t USING gone WHERE t.message_id = gone.message_id RETURNING t.message_id`, row.ID).Scan((*[16]byte)(&message))
	if errors.Is(err, pgx.ErrNoRows) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	stage.Undo(message, "it was cancelled by DELETE")
	return true
}

// A row that another session has locked holds back what must come after it,
// and nothing else.
func TestLockedRowIsNotOvertaken(t *testing.T) {
	for _, ordering := range []string{"key", "none", "total"} {
		t.Run(ordering, func(t *testing.T) {
			t.Parallel()
			log := scenario.NewKafkaLog(t)
			if ordering == "total" {
				log = scenario.NewKafkaTopics(t, kafkaBrokers(), 1, 1)
			}
			stage := scenario.NewStage(t, scenario.NewDatabase(t), log, scenario.Settings{"outbox.ordering": ordering})
			insert := func(key string) scenario.Row { return stage.Insert(stage.Topic(), &key, "payload") }
			before, locked, behind, other := insert("a"), insert("a"), insert("a"), insert("b")

			tx, err := stage.Database.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(t.Context()) }()
			if _, err := tx.Exec(t.Context(), `SELECT FROM `+stage.Table+` WHERE id = $1 FOR UPDATE`, locked.ID); err != nil {
				t.Fatal(err)
			}
			relay := stage.Start()
			stage.AwaitRecord(before.MessageID, 10*time.Second)
			held := []scenario.Row{locked}
			switch ordering {
			case "key":
				held = append(held, behind, insert("a"))
				stage.AwaitRecord(other.MessageID, 10*time.Second)
			case "none":
				stage.AwaitRecord(behind.MessageID, 10*time.Second)
				stage.AwaitRecord(other.MessageID, 10*time.Second)
			case "total":
				held = append(held, behind, other)
			}
			// Others go on where they may, and what is held stays so.
			load := stage.StartLoad(scenario.Workload{Writers: 1, Rate: 50})
			if ordering != "total" {
				for range 3 {
					flows(t, stage)
				}
			}
			scenario.Await(t, 10*time.Second, "the workload", func() (bool, string) { return load.Committed() > 30, "it is slow" })
			load.Stop()
			records := stage.Records()
			for _, row := range held {
				if slices.ContainsFunc(records, func(r scenario.Record) bool { return r.MessageID == row.MessageID }) {
					t.Errorf("id %d was published although id %d was locked", row.ID, locked.ID)
				}
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			stage.Drain(20 * time.Second)
			relay.Stop()
			stage.Verify(0)
		})
	}
}
