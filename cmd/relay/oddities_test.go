package main

import (
	"strings"
	"testing"

	"github.com/outboxrelay/relay/internal/pgtest"
)

// Drivers write their zero time as minus infinity or as the year 1.
func TestCommandsWithInfiniteTimes(t *testing.T) {
	db, file := failures(t)
	db.Exec(t, `ALTER SEQUENCE outbox_id_seq RESTART 100`, `INSERT INTO outbox (topic, created_at) VALUES ('minus', '-infinity'), ('plus', 'infinity'), ('first', '0001-01-01'), ('future', now() + interval '1 day')`,
		`INSERT INTO outbox (topic, available_at) VALUES ('due', '-infinity')`,
		`UPDATE outbox_dead_letters SET created_at = '-infinity', available_at = 'infinity' WHERE id = 11`,
		`UPDATE outbox_dead_letters SET created_at = 'infinity', available_at = '294276-01-01 00:00:00+00' WHERE id = 12`,
		`UPDATE outbox SET created_at = '-infinity' WHERE id = 21`)
	document := expectKeys(t, "status", decode[any](t, execute(t, "status", "--output", "json", "--config", file)), "mode", "database", "sinks", "topics", "slot")
	ages := map[string]float64{}
	for _, topic := range document["topics"].([]any) {
		tree := topic.(map[string]any)
		ages[tree["topic"].(string)] = tree["oldest_pending_age_seconds"].(float64)
	}
	for topic, most := range map[string]float64{"minus": 0, "plus": 0, "future": 0, "due": 100, "first": 1e11} {
		if age, ok := ages[topic]; !ok || age < 0 || age > most {
			t.Errorf("topic %s has age %v", topic, age)
		}
	}
	text := execute(t, "status", "--config", file)
	text.expect(t, 0, words{"minus   1        0s", "first   1        7"}, nil)
	if strings.Contains(text.stdout, " -") {
		t.Errorf("a negative age\n%s", text)
	}
	shown := listed(t, execute(t, "dead", "show", "--all", "--output", "json", "--config", file),
		"message_id", "id", "topic", "key", "type", "attempts", "error", "dead_at", "reason", "payload", "payload_base64", "content_type",
		"headers", "available_at", "created_at", "first_failed_at", "last_failed_at")
	expectObject(t, shown[11], map[string]any{"created_at": "-infinity", "available_at": "infinity"})
	expectObject(t, shown[12], map[string]any{"created_at": "infinity", "available_at": "294276-01-01T00:00:00Z"})
	expectObject(t, shown[13], map[string]any{"available_at": nil})
	execute(t, "dead", "show", uid(11), "--config", file).expect(t, 0, words{"created at    -infinity", "available at  infinity"}, nil)
	execute(t, "dead", "list", "--config", file).expect(t, 0, words{uid(11)}, nil)
	execute(t, "dead", "retry", uid(11), "--yes", "--config", file).expect(t, 0, words{"put back"}, nil)
	execute(t, "dead", "discard", uid(12), "--yes", "--config", file).expect(t, 0, words{"discarded"}, nil)
	execute(t, "replay", "--topic", "orders", "--until", "1h", "--yes", "--config", file).expect(t, 0, words{"1 message is published again"}, nil)
	execute(t, "prune", "--config", file).expect(t, 0, words{"removed 0 published rows"}, nil)
}

func TestPruneTellsWhatItKeeps(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, published_at) SELECT 't', now() - interval '2 days' FROM generate_series(1, 100)`,
		`CREATE TABLE shipments (outbox_id bigint REFERENCES outbox)`, `INSERT INTO shipments VALUES (7), (8)`)
	execute(t, "prune", "--config", configure(t, db)).expect(t, 0,
		words{"removed 98 published rows", "2 rows", "shipments_outbox_id_fkey", `ALTER TABLE "public"."shipments" DROP CONSTRAINT`}, nil)
}

func TestPruneUnderTheRolesDefaults(t *testing.T) {
	db := pgtest.NewOutbox(t)
	file := configure(t, db)
	insertInbox(t, db, file)
	db.Exec(t, `INSERT INTO outbox (topic, published_at) SELECT 't', now() - interval '2 days' FROM generate_series(1, 100)`)
	for _, setting := range []string{"default_transaction_read_only = on", "idle_in_transaction_session_timeout = 1", "lock_timeout = 1"} {
		db.Exec(t, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET `+setting+`', current_database()); END $$`)
	}
	execute(t, "prune", "--config", file).expect(t, 0, words{"removed 100 published rows", "removed 40 inbox rows"}, nil)
	execute(t, "check", "--config", file).expect(t, 1, words{"ok       database: PostgreSQL", "ok       table"}, nil)
	execute(t, "status", "--config", file).expect(t, 0, words{"database   up"}, nil)
}
