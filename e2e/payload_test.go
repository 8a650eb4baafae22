package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/outbox"
)

// texts are JSON as it comes out of JSON.stringify, json.dumps and the like, and
// some that PostgreSQL's jsonb would print in another way.
func texts() []string {
	return []string{
		`{"path":"C:\\temp"}`, `{"quote":"\""}`, `{"octal":"\\052 \\x41"}`, `"\\"`, `{"nul":"\u0000"}`,
		` {"b" : 1.0, "a":1e2, "a":[ ] } `, `{"name":"Zoë €"}`, `null`, `"` + strings.Repeat(`\\`, 5000) + `"`,
	}
}

// writer is a way of writing JSON text, each under a given message id.
type writer func(t *testing.T, database *scenario.Database, topic string, messages map[outbox.UUID]string)

// program runs a program that reads the messages.
func program(interpreter, file, environment string) writer {
	return func(t *testing.T, database *scenario.Database, topic string, messages map[outbox.UUID]string) {
		t.Helper()
		var input strings.Builder
		for id, text := range messages {
			fmt.Fprintf(&input, "%s %s\n", id, text)
		}
		command := exec.CommandContext(t.Context(), interpreter, file, database.URL, topic, "payload_json")
		command.Stdin = strings.NewReader(input.String())
		command.Env = append(os.Environ(), environment)
		if output, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", file, err, output)
		}
	}
}

// statement writes with pgx, in one of its modes.
func statement(sql string, mode pgx.QueryExecMode) writer {
	return func(t *testing.T, database *scenario.Database, topic string, messages map[outbox.UUID]string) {
		t.Helper()
		for id, text := range messages {
			if _, err := database.Pool.Exec(t.Context(), sql, mode, id.String(), topic, id.String(), text); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
		}
	}
}

// library writes with the library's field for JSON that is text.
func library(t *testing.T, database *scenario.Database, topic string, messages map[outbox.UUID]string) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), database.Pool, func(tx pgx.Tx) error {
		for id, text := range messages {
			if _, err := outbox.Insert(t.Context(), tx, outbox.Message{ID: id, Topic: topic, Key: id.String(), JSONText: text}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestJSONArrivesAsItWasWritten writes JSON as people do, in several languages,
// and compares bytes in Kafka.
func TestJSONArrivesAsItWasWritten(t *testing.T) {
	const insert = `INSERT INTO outbox (message_id, topic, key, payload_json) VALUES ($1, $2, $3, $4)`
	writers := map[string]writer{
		"library":     library,
		"pgx":         statement(insert, pgx.QueryExecModeCacheStatement),
		"pgx, simple": statement(insert, pgx.QueryExecModeSimpleProtocol),
	}
	if python, err := servers.Python(t.Context(), os.Stderr); err != nil {
		t.Error(err)
	} else {
		writers["psycopg"] = program(python, "testdata/writer.py", "")
	}
	if servers.HasNode() {
		modules, err := servers.NodeModules(t.Context(), os.Stderr)
		if err != nil {
			t.Fatal(err)
		}
		writers["node-postgres"] = program("node", "testdata/writer.js", "NODE_PATH="+modules)
	} else {
		t.Log("without Node.js and npm, node-postgres is left out")
	}
	stage := scenario.NewKafkaStage(t, nil)
	stage.Start()
	for name, write := range writers {
		t.Run(name, func(t *testing.T) {
			messages := map[outbox.UUID]string{}
			for _, text := range texts() {
				messages[outbox.NewUUID()] = text
			}
			write(t, stage.Database, stage.Topic(), messages)
			for id, text := range messages {
				if record := stage.AwaitRecord(id, 30*time.Second); string(record.Payload) != text || record.Key != id.String() {
					t.Errorf("%s with the key %s arrived as %s with the key %s", text, id, record.Payload, record.Key)
				}
			}
		})
	}
	t.Run("outbox_publish", func(t *testing.T) {
		for _, text := range texts() {
			id := scenario.One[string](t, stage.Database, `SELECT outbox_publish($1, 42, 'Tested', $2::json)::text`, stage.Topic(), text)
			message, err := outbox.ParseUUID(id)
			if err != nil {
				t.Fatal(err)
			}
			if record := stage.AwaitRecord(message, 30*time.Second); string(record.Payload) != text || record.Key != "42" {
				t.Errorf("%s arrived as %s with the key %s", text, record.Payload, record.Key)
			}
		}
	})
}

// TestMigrateBesideARunningRelay: a relay of a table that was not migrated works,
// and needs no restart for the column that the migration adds.
func TestMigrateBesideARunningRelay(t *testing.T) {
	stage := scenario.NewKafkaStage(t, nil)
	stage.Database.Exec(t, `DROP TRIGGER outbox_payload_bytes ON outbox`)
	stage.Database.Exec(t, `ALTER TABLE outbox DROP COLUMN payload_json`)
	relay := stage.Start()
	key := "k"
	before := stage.Insert(stage.Topic(), &key, `"before"`)
	if record := stage.AwaitRecord(before.MessageID, 30*time.Second); string(record.Payload) != `"before"` {
		t.Errorf("before the migration: %s", record.Payload)
	}
	stage.Database.Exec(t, `ALTER TABLE outbox ADD COLUMN payload_json json`)
	id := outbox.NewUUID()
	stage.Database.Exec(t, `INSERT INTO outbox (message_id, topic, key, payload_json) VALUES ($1::text::uuid, $2, 'k', '{"path": "C:\\temp"}')`, id.String(), stage.Topic())
	if record := stage.AwaitRecord(id, 30*time.Second); string(record.Payload) != `{"path": "C:\\temp"}` {
		t.Errorf("after the migration: %q", record.Payload)
	}
	relay.Stop()
}
