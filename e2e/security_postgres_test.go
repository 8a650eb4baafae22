package e2e_test

import (
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// encryptedPostgres is a server that takes the relay's role only with TLS, and
// the role relay_cert only with a client's certificate. The superuser needs none
// of that.
func encryptedPostgres(t *testing.T, ca *authority) *servers.Postgres {
	t.Helper()
	rules := filepath.Join(ca.dir, "pg_hba.conf")
	try(t, os.WriteFile(rules, []byte(`host all postgres 127.0.0.1/32 trust
hostssl all relay_cert 127.0.0.1/32 cert
hostssl all relay_tls 127.0.0.1/32 scram-sha-256
`), 0o644))
	certificate, key := ca.issue("server", "server", []string{"localhost"}, time.Now().Add(time.Hour))
	server, err := servers.StartPostgres(t.Context(), servers.PostgresOptions{Settings: map[string]string{
		"hba_file": rules, "ssl": "on", "ssl_cert_file": certificate, "ssl_key_file": key, "ssl_ca_file": ca.file,
	}})
	try(t, err)
	servers.CleanUp(t, server)
	return server
}

// relayRoles lets roles do in the stage's database what a relay does.
const relayRoles = `
CREATE ROLE relay_tls LOGIN PASSWORD '` + canary + `'; CREATE ROLE relay_cert LOGIN;
GRANT SELECT, UPDATE (published_at), DELETE ON outbox TO relay_tls, relay_cert;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_parked TO relay_tls, relay_cert;
GRANT SELECT, INSERT, UPDATE ON outbox_dead_letters TO relay_tls, relay_cert;
GRANT SELECT ON outbox_migrations TO relay_tls, relay_cert`

// TestPostgresTLS connects in right and wrong ways to a server with TLS. Each
// wrong way is refused, before a password is sent where the server is not who it
// should be, and has a message that says what to do.
func TestPostgresTLS(t *testing.T) {
	t.Parallel()
	ca, stranger := newAuthority(t, "the authority"), newAuthority(t, "a stranger")
	server := encryptedPostgres(t, ca)
	stage := scenario.NewStage(t, scenario.NewDatabaseOn(t, server.URL("postgres")), scenario.NewKafkaLog(t), nil)
	stage.Database.Exec(t, relayRoles)
	clientCert, clientKey := ca.issue("client", "relay_cert", nil, time.Now().Add(time.Hour))
	strangerCert, strangerKey := stranger.issue("client", "relay_cert", nil, time.Now().Add(time.Hour))

	// address is the database's for the role, with parameters.
	address := func(t *testing.T, host, role string, parameters ...string) string {
		parsed, err := url.Parse(stage.Database.URL)
		try(t, err)
		parsed.Host = host + ":" + parsed.Port()
		parsed.User = url.UserPassword(role, canary)
		query := url.Values{}
		for _, p := range parameters {
			name, value, _ := strings.Cut(p, "=")
			query.Set(name, value)
		}
		parsed.RawQuery = query.Encode()
		return parsed.String()
	}
	verified := []string{"sslmode=verify-full", "sslrootcert=" + ca.file}
	good := address(t, "localhost", "relay_tls", verified...)
	plain := as(t, servers.FromEnvironment().PostgresURL, "postgres", canary)

	for _, test := range []struct {
		name     string
		settings scenario.Settings
		// error and remedy are of the one finding that is an error; empty: none is.
		error, remedy string
	}{
		{"verify-full", scenario.Settings{"database.url": good}, "", ""},
		{"client certificate", scenario.Settings{"database.url": address(t, "localhost", "relay_cert", append(verified, "sslcert="+clientCert, "sslkey="+clientKey)...)}, "", ""},
		{"verify-ca by another name", scenario.Settings{"database.url": address(t, "127.0.0.1", "relay_tls", "sslmode=verify-ca", "sslrootcert="+ca.file)}, "", ""},
		{"wrong authority", scenario.Settings{"database.url": address(t, "localhost", "relay_tls", "sslmode=verify-full", "sslrootcert="+stranger.file)},
			"certificate signed by unknown authority", "set sslrootcert in database.url"},
		{"the system's authorities", scenario.Settings{"database.url": address(t, "localhost", "relay_tls", "sslmode=verify-full")},
			"certificate signed by unknown authority", "set sslrootcert in database.url"},
		{"wrong name", scenario.Settings{"database.url": address(t, "127.0.0.1", "relay_tls", verified...)},
			"cannot validate certificate for 127.0.0.1", "use a name in database.url that it has"},
		{"plain server", scenario.Settings{"database.url": strings.Replace(plain, "sslmode=disable", "sslmode=verify-full", 1)},
			"server refused TLS", "the server does not offer TLS"},
		{"no TLS where it is demanded", scenario.Settings{"database.url": address(t, "localhost", "relay_tls", "sslmode=disable")},
			"no encryption", "set sslmode=verify-full and sslrootcert"},
		{"no client certificate", scenario.Settings{"database.url": address(t, "localhost", "relay_cert", verified...)},
			"client certificate", "set sslcert and sslkey in database.url"},
		{"client certificate of a stranger", scenario.Settings{"database.url": address(t, "localhost", "relay_cert", append(verified, "sslcert="+strangerCert, "sslkey="+strangerKey)...)},
			"client certificate", "to one that it trusts"},
		{"direct URL with a wrong authority", scenario.Settings{
			"database.url": good, "database.direct_url": address(t, "localhost", "relay_tls", "sslmode=verify-full", "sslrootcert="+stranger.file),
		}, "database.direct_url: ", "set sslrootcert in database.direct_url"},
		{"direct URL with a wrong name", scenario.Settings{
			"database.url": good, "database.direct_url": address(t, "127.0.0.1", "relay_tls", verified...),
		}, "database.direct_url: ", "use a name in database.direct_url that it has"},
	} {
		t.Run(test.name, func(t *testing.T) { expectFinding(t, stage.Config.With(test.settings), test.error, test.remedy) })
	}

	t.Run("everything is encrypted", func(t *testing.T) {
		relay := stage.Relay(scenario.Settings{"database.url": good, "database.direct_url": good})
		relay.Start()
		key := "key"
		stage.AwaitRecord(stage.Insert(stage.Topic(), &key, "over TLS").MessageID, 30*time.Second)
		const sessions = `SELECT count(*) FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) WHERE a.usename = 'relay_tls' AND s.ssl = $1`
		scenario.Await(t, 30*time.Second, "the LISTEN session", func() (bool, string) {
			n := scenario.One[int](t, stage.Database, `SELECT count(*) FROM pg_stat_activity WHERE usename = 'relay_tls' AND query LIKE 'LISTEN%'`)
			return n == 1, "there is none"
		})
		if n := scenario.One[int](t, stage.Database, sessions, false); n > 0 {
			t.Errorf("%d sessions of the relay are not encrypted", n)
		}
		if n := scenario.One[int](t, stage.Database, sessions, true); n < 2 {
			t.Errorf("%d sessions of the relay are encrypted, want those of the claims and that of LISTEN", n)
		}
		relay.Stop()
	})

	t.Run("only LISTEN is refused", func(t *testing.T) {
		relay := stage.Relay(scenario.Settings{"database.url": good, "database.direct_url": address(t, "127.0.0.1", "relay_tls", verified...)})
		relay.Start()
		key := "key"
		stage.AwaitRecord(stage.Insert(stage.Topic(), &key, "without notifications").MessageID, 30*time.Second)
		scenario.Await(t, 30*time.Second, "a warning", func() (bool, string) {
			return len(lines(relay.Log(), "cannot listen for notifications", "cannot validate certificate for 127.0.0.1")) == 1, relay.Log()
		})
		relay.Stop()
	})

	t.Run("expired", func(t *testing.T) {
		ca.issue("server", "server", []string{"localhost"}, time.Now().Add(-time.Hour))
		try(t, server.Restart(t.Context()))
		expectFinding(t, stage.Config.With(scenario.Settings{"database.url": good}), "certificate has expired", "renew it, or correct this machine's clock")
	})
}

// expectFinding runs relay check and wants one error with the texts, or none.
func expectFinding(t *testing.T, config scenario.Config, message, remedy string) {
	t.Helper()
	relay := scenario.NewRelay(t, "check", config)
	result := relay.Command("check", "--output", "json")
	var errors []finding
	for _, f := range findingsIn(t, result) {
		if f.Level == "error" {
			errors = append(errors, f)
		}
	}
	switch {
	case message == "" && (len(errors) > 0 || result.Code != 0):
		t.Errorf("relay check: %s", result)
	case message != "" && (len(errors) != 1 || result.Code != 1 || !strings.Contains(errors[0].Message, message) || !strings.Contains(errors[0].Remedy, remedy)):
		t.Errorf("want one error with %q and the remedy %q: %s", message, remedy, result)
	}
}

// finding is one of relay check's.
type finding struct{ Level, Subject, Message, Remedy string }

func findingsIn(t *testing.T, result scenario.Result) (found []finding) {
	t.Helper()
	if err := json.Unmarshal([]byte(result.Stdout), &found); err != nil {
		t.Fatalf("%v: %s", err, result)
	}
	return found
}
