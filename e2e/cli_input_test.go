package e2e_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// strictPostgres demands a password of everybody but the superuser.
func strictPostgres(t *testing.T) *servers.Postgres {
	t.Helper()
	dir, err := os.MkdirTemp("", "outbox-relay-hba-")
	try(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	try(t, os.Chmod(dir, 0o755)) // the server may be another user
	rules := filepath.Join(dir, "pg_hba.conf")
	try(t, os.WriteFile(rules, []byte("host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"), 0o644))
	server, err := servers.StartPostgres(t.Context(), servers.PostgresOptions{Settings: map[string]string{"hba_file": rules}})
	try(t, err)
	servers.CleanUp(t, server)
	return server
}

// as is the URL with a user and a password.
func as(t *testing.T, address, user, password string) string {
	t.Helper()
	parsed, err := url.Parse(address)
	try(t, err)
	parsed.User = url.UserPassword(user, password)
	return parsed.String()
}

// elsewhere is the URL with another host and port.
func elsewhere(t *testing.T, address, hostPort string) string {
	t.Helper()
	parsed, err := url.Parse(address)
	try(t, err)
	parsed.Host = hostPort
	return parsed.String()
}

// ageing passes on the connections to a server, whose version is 13 to clients.
func ageing(t *testing.T, server string) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	try(t, err)
	var group sync.WaitGroup
	t.Cleanup(func() {
		_ = listener.Close()
		group.Wait()
	})
	pass := func(client net.Conn) {
		defer client.Close()
		upstream, err := net.Dial("tcp", server)
		if err != nil {
			return
		}
		defer upstream.Close()
		group.Go(func() {
			_, _ = io.Copy(upstream, client)
			_ = upstream.Close()
		})
		buffer := make([]byte, 64<<10)
		for {
			n, err := upstream.Read(buffer)
			if err != nil {
				return
			}
			answer := buffer[:n]
			if at := bytes.Index(answer, []byte("server_version\x00")); at >= 0 {
				copy(answer[at+len("server_version\x00"):], "13")
			}
			if _, err := client.Write(answer); err != nil {
				return
			}
		}
	}
	group.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			group.Go(func() { pass(client) })
		}
	})
	return listener.Addr().String()
}

// badDatabase is something that is wrong with the database at the start.
type badDatabase struct {
	name string
	// arrange makes it so and returns the relay's database.url.
	arrange func(t *testing.T, stage *scenario.Stage, role string) string
	// finding is what check says, problem and remedy what run logs.
	finding, problem, remedy string
	// heal does what the remedy says; nil where that takes another server.
	heal func(t *testing.T, stage *scenario.Stage, role string)
}

const rolePassword = "a-role-s-password"

var badDatabases = []badDatabase{
	{
		name:    "wrong password",
		arrange: func(t *testing.T, s *scenario.Stage, role string) string { return as(t, s.Database.URL, role, "wrong") },
		finding: "error    database: ", problem: "authentication", remedy: "check the user and the password",
		heal: func(t *testing.T, s *scenario.Stage, role string) {
			s.Database.Exec(t, "ALTER ROLE "+role+" PASSWORD 'wrong'")
		},
	},
	{
		name: "missing table",
		arrange: func(t *testing.T, s *scenario.Stage, role string) string {
			s.Database.Exec(t, "ALTER TABLE outbox RENAME TO hidden; ALTER TABLE outbox_migrations RENAME TO hidden_migrations")
			return as(t, s.Database.URL, role, rolePassword)
		},
		finding: `error    table "public"."outbox": the table does not exist -> run `, problem: "missing_table", remedy: "relay migrate",
		heal: func(t *testing.T, s *scenario.Stage, _ string) {
			s.Database.Exec(t, "ALTER TABLE hidden RENAME TO outbox; ALTER TABLE hidden_migrations RENAME TO outbox_migrations")
		},
	},
	{
		name: "missing grant",
		arrange: func(t *testing.T, s *scenario.Stage, role string) string {
			s.Database.Exec(t, "REVOKE UPDATE ON outbox FROM "+role)
			return as(t, s.Database.URL, role, rolePassword)
		},
		finding: `error    grants on "public"."outbox": missing: UPDATE (published_at) -> GRANT UPDATE (published_at) ON "public"."outbox" TO `,
		problem: "missing_grant", remedy: "GRANT ",
		heal: func(t *testing.T, s *scenario.Stage, role string) {
			s.Database.Exec(t, "GRANT UPDATE ON outbox TO "+role)
		},
	},
	{
		name: "no such database",
		arrange: func(t *testing.T, s *scenario.Stage, role string) string {
			return as(t, strings.Replace(s.Database.URL, s.Database.Name, s.Database.Name+"_new", 1), role, rolePassword)
		},
		finding: "error    database: ", problem: "missing_database", remedy: "create the database, or correct its name",
	},
	{
		name: "PostgreSQL 13",
		arrange: func(t *testing.T, s *scenario.Stage, role string) string {
			parsed, err := url.Parse(s.Database.URL)
			try(t, err)
			return as(t, elsewhere(t, s.Database.URL, ageing(t, parsed.Host)), role, rolePassword)
		},
		finding: "error    database: PostgreSQL 13", problem: "server_version", remedy: "upgrade the server to PostgreSQL 14 or newer",
	},
	{
		name: "TLS where there is none",
		arrange: func(t *testing.T, s *scenario.Stage, role string) string {
			return strings.Replace(as(t, s.Database.URL, role, rolePassword), "sslmode=disable", "sslmode=require", 1)
		},
		finding: "error    database: ", problem: "tls", remedy: "the server does not offer TLS",
	},
	{
		name: "unreachable",
		arrange: func(t *testing.T, s *scenario.Stage, role string) string {
			return as(t, elsewhere(t, s.Database.URL, "127.0.0.1:1"), role, rolePassword)
		},
		finding: "error    database: ", problem: "unreachable", remedy: "check that the server in database.url runs",
	},
}

func TestBadDatabase(t *testing.T) {
	t.Parallel()
	server := strictPostgres(t)
	for i, bad := range badDatabases {
		t.Run(bad.name, func(t *testing.T) {
			t.Parallel()
			stage := scenario.NewStage(t, scenario.NewDatabaseOn(t, server.URL("postgres")), scenario.NewKafkaLog(t), scenario.Settings{"log.level": "info"})
			role := fmt.Sprintf("relay_%d", i)
			stage.Database.Exec(t, "CREATE ROLE "+role+" LOGIN PASSWORD '"+rolePassword+"'; GRANT ALL ON outbox, outbox_migrations, outbox_parked, outbox_dead_letters TO "+role)
			rows := insert(stage, stage.Topic(), "k", "1", "2", "3")
			relay := stage.Relay(scenario.Settings{"database.url": bad.arrange(t, stage, role)})

			check := relay.Command("check")
			expect(t, check, 1, bad.finding)
			if !strings.Contains(check.Stdout, bad.remedy) {
				t.Errorf("check does not say %q: %s", bad.remedy, check)
			}
			relay.Launch()
			saysOnce(t, relay, bad.problem, bad.remedy)
			if all := lines(relay.Log(), "level="); len(all) > 3 { // that it runs, and that it cannot listen
				t.Errorf("it says too much: %q", all)
			}
			if relay.Get("/livez") != 200 || relay.Get("/readyz") != 503 {
				t.Errorf("/livez %d, /readyz %d; want 200 and 503", relay.Get("/livez"), relay.Get("/readyz"))
			}
			expect(t, relay.Command("healthcheck"), 1, "")
			if len(stage.Records()) > 0 {
				t.Error("something was published")
			}
			if bad.heal != nil {
				bad.heal(t, stage, role)
				published(t, stage, rows...)
				logs(t, relay, "the outbox can be read again")
				expect(t, relay.Command("healthcheck"), 0, "")
				stage.Verify(0)
			} else {
				unmarked(t, stage, rows...)
			}
			relay.Stop()
		})
	}
}

// saysOnce watches a relay that cannot read the outbox say so.
func saysOnce(t *testing.T, relay *scenario.Relay, problem, remedy string) {
	t.Helper()
	logs(t, relay, "level=ERROR", "the outbox cannot be read", "problem="+problem, remedy)
	time.Sleep(3 * time.Second) // to see what it says again, after four more attempts
	if found := lines(relay.Log(), "the outbox cannot be read"); len(found) != 1 {
		t.Errorf("it says so %d times: %q", len(found), found)
	}
}

// A standby takes no marks, so nothing may be published from it.
func TestHotStandby(t *testing.T) {
	t.Parallel()
	server, err := servers.StartPostgres(t.Context(), servers.PostgresOptions{})
	try(t, err)
	servers.CleanUp(t, server)
	stage := scenario.NewStage(t, scenario.NewDatabaseOn(t, server.URL("postgres")), scenario.NewKafkaLog(t), scenario.Settings{"log.level": "info"})
	rows := insert(stage, stage.Topic(), "k", "1", "2", "3")
	data := scenario.One[string](t, stage.Database, "SHOW data_directory")
	try(t, server.Stop(servers.Fast))
	try(t, os.WriteFile(filepath.Join(data, "standby.signal"), nil, 0o644))
	try(t, server.Start(t.Context()))

	relay := stage.Relay(nil)
	const remedy = "point database.url at the primary"
	expect(t, relay.Command("check"), 1, "error    database: the server is a standby or read-only -> "+remedy)
	if migrate := relay.Command("migrate"); migrate.Code != 0 && !strings.Contains(migrate.Stderr, "primary") {
		t.Errorf("migrate does not say what is wrong: %s", migrate)
	}
	relay.Launch()
	saysOnce(t, relay, "read_only", remedy)
	unmarked(t, stage, rows...)
	if len(stage.Records()) > 0 {
		t.Error("something was published")
	}
	scenario.One[bool](t, stage.Database, "SELECT pg_promote()")
	published(t, stage, rows...)
	logs(t, relay, "the outbox can be read again")
	relay.Stop()
	stage.Verify(0)
}

func TestRelayWithoutAnything(t *testing.T) {
	t.Parallel()
	relay := scenario.NewRelay(t, "relay", scenario.Config{
		"database": scenario.Config{"url": "postgres://relay@127.0.0.1:1/shop?sslmode=disable"},
		"sinks":    scenario.Config{"main": scenario.Config{"rabbitmq": scenario.Config{"url": "amqp://relay:x@127.0.0.1:1/"}}},
		"log":      scenario.Config{"format": "text"},
	})
	relay.Launch()
	logs(t, relay, "problem=unreachable", "remedy=")
	logs(t, relay, "sink is away", "sink=main", "connection refused")
	time.Sleep(8 * time.Second) // to see what it says again
	// That it runs, and one each about the database, notifications, the sink.
	if all := lines(relay.Log(), "level="); len(all) != 4 {
		t.Errorf("it says %d lines in 8 s, want 4: %q", len(all), all)
	}
	relay.Stop()
}
