package e2e_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
)

func TestFailurePolicies(t *testing.T) {
	for _, policy := range []string{"dead_letter", "skip"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			// The route's own policy, not the general one.
			stage, topic := poisonable(t, scenario.Settings{"routes": []any{
				scenario.Config{"match": scenario.Config{"topic": "*"}, "sink": "main", "on_failure": policy},
			}})
			a, b := insert(stage, topic, "a", "1", tooLarge, "3", tooLarge, "5"), insert(stage, topic, "b", "1")
			relay := stage.Start()
			published(t, stage, a[0], a[2], a[4], b[0])
			relay.Stop()
			want := 0
			if policy == "dead_letter" {
				want = 2
				logs(t, relay, "a message was moved to the dead letters", fmt.Sprintf("id=%d", a[1].ID), "reason=message_too_large")
			} else {
				logs(t, relay, "a message was skipped and deleted", fmt.Sprintf("id=%d", a[1].ID), "reason=message_too_large")
			}
			if n := scenario.One[int](t, stage.Database, `SELECT count(*) FROM outbox_dead_letters WHERE id IN ($1, $2) AND key = 'a' AND octet_length(payload) = 5000 AND attempts = 1 AND reason = 'message_too_large'`, a[1].ID, a[3].ID); n != want {
				t.Errorf("%d dead letters, want %d", n, want)
			}
			if n := scenario.One[int](t, stage.Database, `SELECT count(*) FROM `+stage.Table+` WHERE id IN ($1, $2)`, a[1].ID, a[3].ID); n != 0 {
				t.Errorf("%d of the rows are still in the outbox", n)
			}
			got := sequencesOf(readKafkaRecords(t, kafkaBrokers(), topic, 3))
			if want := rowIDs(a[0], a[2], a[4]); !slices.Equal(got["a"], want) {
				t.Errorf("key a: %v, want %v", got["a"], want)
			}
		})
	}
}

// A dead letter's copy says why, carries what the message carried, and is
// published before the row moves: while nobody takes it the row waits.
func TestDeadLettersAreCopiedToATopic(t *testing.T) {
	t.Parallel()
	stage, topic := poisonable(t, scenario.Settings{
		"failures.policy": "dead_letter", "failures.dead_letter.sink": "main", "failures.dead_letter.destination": "{topic}.dead",
	})
	a := insert(stage, topic, "a", "1", tooLarge, "3")
	relay := stage.Start()
	published(t, stage, a[0])
	scenario.Await(t, 60*time.Second, "the message that waits for its copy", func() (bool, string) {
		n := scenario.One[int](t, stage.Database, `SELECT count(*) FROM outbox_parked WHERE id = $1 AND state = 'retrying' AND error LIKE '%its copy could not be published%'`, a[1].ID)
		return n == 1, relay.Log()
	})
	if n := scenario.One[int](t, stage.Database, `SELECT count(*) FROM outbox_dead_letters`); n != 0 {
		t.Errorf("%d dead letters although the topic of their copies is missing", n)
	}
	createKafkaTopic(t, topic+".dead")
	published(t, stage, a[2])
	relay.Stop()
	if n := scenario.One[int](t, stage.Database, `SELECT count(*) FROM outbox_dead_letters WHERE id = $1 AND octet_length(payload) = 5000`, a[1].ID); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
	records, err := scenario.ReadKafkaTopics(t, kafkaBrokers(), []string{topic + ".dead"}, 3).Records(t.Context())
	try(t, err)
	if len(records) != 1 {
		t.Fatalf("%d copies, want 1", len(records))
	}
	copied := records[0]
	if copied.MessageID != a[1].MessageID || copied.Key != "a" || string(copied.Payload) != tooLarge {
		t.Errorf("the copy is of message %s, key %s, %d bytes", copied.MessageID, copied.Key, len(copied.Payload))
	}
	if copied.Headers["dead-letter-reason"] != "message_too_large" || copied.Headers["dead-letter-topic"] != topic ||
		copied.Headers["dead-letter-attempts"] == "" || copied.Headers["dead-letter-error"] == "" {
		t.Errorf("the copy's headers are %v", copied.Headers)
	}
}

// A message that might get through another time is tried as often as
// max_attempts says, and what the broker's absence costs does not count.
func TestMessageIsTriedAsOftenAsItMay(t *testing.T) {
	t.Parallel()
	log := scenario.NewRabbitLog(t)
	stage := scenario.NewStage(t, scenario.NewDatabase(t), log, together(quickRetries, scenario.Settings{
		"failures.policy": "dead_letter", "failures.max_attempts": 3,
	}))
	nowhere := name("unroutable")
	a := insert(stage, nowhere, "a", "1", "2")
	relay := stage.Start()
	published(t, stage, insert(stage, stage.Topic(), "a", "1")...)
	scenario.Await(t, 30*time.Second, "two dead letters", func() (bool, string) {
		n := scenario.One[int](t, stage.Database, `SELECT count(*) FROM outbox_dead_letters WHERE id IN ($1, $2) AND attempts = 3 AND reason = 'unroutable' AND first_failed_at < last_failed_at`, a[0].ID, a[1].ID)
		return n == 2, relay.Log()
	})
	scenario.Await(t, 20*time.Second, "the entry to go", func() (bool, string) { return entriesLeft(t, stage) == 0, "" })
	logs(t, relay, "a message was refused", fmt.Sprintf("id=%d", a[0].ID), "attempts=2")
	logs(t, relay, "a message was moved to the dead letters", fmt.Sprintf("id=%d", a[0].ID), "attempts=3")
	relay.Stop()
}
