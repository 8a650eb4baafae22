package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// roleSettings are what somebody may have set for other clients of the role.
var roleSettings = []string{
	"statement_timeout = '1s'", "lock_timeout = '500ms'", "idle_in_transaction_session_timeout = '1s'", "idle_session_timeout = '1s'",
	"default_transaction_read_only = on", "default_transaction_isolation = serializable", "default_transaction_deferrable = on",
	"client_encoding = LATIN1", "DateStyle = German", "bytea_output = escape", "synchronous_commit = off", "search_path = nowhere",
	"standard_conforming_strings = off", "enable_indexscan = off",
}

// revokeLog takes the functions of the log away from everybody.
const revokeLog = `
REVOKE EXECUTE ON FUNCTION pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn() FROM PUBLIC;
DO $$ BEGIN EXECUTE (SELECT string_agg('REVOKE EXECUTE ON FUNCTION ' || p.oid::regprocedure || ' FROM PUBLIC', '; ') FROM pg_proc p WHERE p.proname = 'pg_logical_emit_message'); END $$`

// bouncerFor is PgBouncer in transaction mode before the database, for one more user.
func bouncerFor(t *testing.T, database *scenario.Database, user string) *servers.PgBouncer {
	t.Helper()
	parsed, err := pgx.ParseConfig(database.URL)
	try(t, err)
	dir, err := os.MkdirTemp("", "outbox-relay-users-")
	try(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	try(t, os.Chmod(dir, 0o755)) //nolint:gosec // PgBouncer is another user
	users := filepath.Join(dir, "users.txt")
	try(t, os.WriteFile(users, []byte("\"postgres\" \"\"\n\""+user+"\" \"\"\n"), 0o644)) //nolint:gosec // likewise
	pooler, err := servers.StartPgBouncer(t.Context(), servers.PgBouncerOptions{PostgresPort: int(parsed.Port), Settings: map[string]string{"auth_file": users}})
	try(t, err)
	servers.CleanUp(t, pooler)
	return pooler
}

// What was set for a role, and what was taken from it, keeps no relay from its
// work, nor the commands, and is not worth a warning.
func TestSettingsOfTheRole(t *testing.T) {
	for _, pooled := range []bool{false, true} {
		for _, revoked := range []bool{false, true} {
			t.Run(fmt.Sprintf("pooled %v, functions revoked %v", pooled, revoked), func(t *testing.T) {
				t.Parallel()
				stage := scenario.NewStage(t, scenario.NewDatabase(t), scenario.NewKafkaLog(t), nil)
				role := strings.ReplaceAll(stage.Database.Name, "scenario", "relay")
				stage.Database.Exec(t, `CREATE ROLE `+role+` LOGIN; GRANT SELECT, UPDATE, DELETE ON outbox TO `+role+`; GRANT SELECT ON outbox_migrations TO `+role+`;
					GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_parked TO `+role+`; GRANT SELECT, INSERT, UPDATE ON outbox_dead_letters TO `+role)
				t.Cleanup(func() {
					for _, sql := range []string{`DROP OWNED BY ` + role, `DROP ROLE ` + role} {
						_, err := stage.Database.Pool.Exec(context.Background(), sql)
						try(t, err)
					}
				})
				for _, setting := range roleSettings {
					stage.Database.Exec(t, `ALTER ROLE `+role+` SET `+setting)
				}
				way := "compares positions"
				if revoked {
					stage.Database.Exec(t, revokeLog)
					way = "flushes the server's log after each claim"
				}
				url := strings.Replace(stage.Database.URL, "postgres@", role+"@", 1)
				expect(t, stage.Relay(nil).Command("migrate", "--only", "inbox"), 0, "")
				stage.Database.Exec(t, `GRANT SELECT, DELETE ON inbox, inbox_order TO `+role)
				settings := scenario.Settings{"database.url": url, "log.level": "info", "outbox.retention": "1h"}
				if pooled {
					settings["database.url"] = strings.Replace(bouncerFor(t, stage.Database, role).URL(stage.Database.Name), "postgres@", role+"@", 1)
					settings["database.direct_url"] = url
				}
				relay := stage.Relay(settings)
				expect(t, relay.Command("check"), 0, way)
				relay.Start()
				for _, key := range []string{"Müller", "Größe"} {
					published(t, stage, insert(stage, stage.Topic(), key, "1", "2", "3")...)
					time.Sleep(1500 * time.Millisecond) // past the bounds
				}
				stage.Database.Exec(t, `INSERT INTO outbox (topic, published_at) VALUES ('old', '2001-02-03')`)
				stage.Database.Exec(t, `INSERT INTO inbox (consumer, message_id, processed_at) VALUES ('old', gen_random_uuid(), '2001-02-03')`)
				for _, command := range []string{"status", "parked list", "dead list", "replay --topic t --dry-run"} {
					expect(t, relay.Command(strings.Fields(command)...), 0, "")
				}
				expect(t, relay.Command("prune"), 0, "removed 1 inbox rows")
				relay.Stop()
				if bad := append(lines(relay.Log(), "level=WARN"), lines(relay.Log(), "level=ERROR")...); len(bad) > 0 {
					t.Errorf("it complains: %q", bad)
				}
				if told := lines(relay.Log(), "does not tell its log's positions"); (len(told) == 1) != revoked {
					t.Errorf("it says %q", told)
				}
				for _, record := range stage.Records() {
					if key := record.Key; key != "Müller" && key != "Größe" {
						t.Errorf("key %q", key)
					}
				}
				stage.Verify(0)
			})
		}
	}
}

// In a database of another encoding, also behind a pooler, the wire has UTF-8.
func TestEncodingOfTheDatabase(t *testing.T) {
	for _, pooled := range []bool{false, true} {
		t.Run(fmt.Sprintf("pooled %v", pooled), func(t *testing.T) {
			t.Parallel()
			admin := scenario.NewDatabase(t)
			name := admin.Name + "_latin"
			admin.Exec(t, `CREATE DATABASE `+name+` ENCODING LATIN1 TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'`)
			t.Cleanup(func() { _, _ = admin.Pool.Exec(context.Background(), `DROP DATABASE `+name+` WITH (FORCE)`) })
			direct := strings.Replace(admin.URL, admin.Name, name, 1)
			writer, err := pgx.Connect(t.Context(), direct+"&client_encoding=UTF8")
			try(t, err)
			defer func() { _ = writer.Close(context.WithoutCancel(t.Context())) }()
			log := scenario.NewKafkaLog(t)
			config := scenario.Config{"database": scenario.Config{"url": direct}, "sinks": scenario.Config{"main": log.Sink()}, "log": scenario.Config{"format": "text"}}
			if pooled {
				config["database"] = scenario.Config{"url": bouncerFor(t, admin, "unused").URL(name), "direct_url": direct}
			}
			relay := scenario.NewRelay(t, "relay", config)
			expect(t, relay.Command("migrate", "--only", "outbox"), 0, "")
			_, err = writer.Exec(t.Context(), `INSERT INTO outbox (topic, key, type, headers) VALUES ($1, 'Müller', 'Größe', '{"näme": "José"}')`, log.Topics()[0])
			try(t, err)
			relay.Start()
			var records []scenario.Record
			scenario.Await(t, 20*time.Second, "the record", func() (bool, string) {
				records, err = log.Records(t.Context())
				return err == nil && len(records) == 1, fmt.Sprint(len(records), err)
			})
			relay.Stop()
			r := records[0]
			if r.Key != "Müller" || r.Headers["message-type"] != "Größe" || r.Headers["näme"] != "José" {
				t.Errorf("key %q, headers %q", r.Key, r.Headers)
			}
		})
	}
}
