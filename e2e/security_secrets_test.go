package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// TestSecretsAreNowhereInARunningRelay gives a relay that works every kind of
// secret, lets things go wrong around it, and looks for the secrets wherever it
// shows something of itself. Its log, at the level debug, is looked through when
// the test ends, as every relay's.
func TestSecretsAreNowhereInARunningRelay(t *testing.T) {
	t.Parallel()
	broker, err := servers.StartKafka(t.Context(), servers.KafkaOptions{Secure: true})
	try(t, err)
	servers.CleanUp(t, broker)
	log := scenario.NewKafkaTopics(t, broker.Brokers(), 1, 3)
	queues := scenario.NewRabbitLog(t)
	r := newRoles(t, log)
	r.exec("postgres", `ALTER ROLE relay PASSWORD '`+canary+`'`)
	tokenFile := filepath.Join(t.TempDir(), "token")
	try(t, os.WriteFile(tokenFile, []byte("token-"+canary+"\n"), 0o600))
	topic, queue := log.Topics()[0], queues.Topics()[0]
	collector := scenario.NewCollector(t)
	relay := r.relay("relay", "relay", log, scenario.Settings{
		"database.url":           as(t, r.url, "relay", canary),
		"database.direct_url":    as(t, r.url, "relay", canary),
		"outbox.publish_timeout": "5s",
		"sinks": scenario.Config{
			"main": scenario.Config{"kafka": scenario.Config{
				"brokers": broker.SASLSSLBrokers(), "max_message_bytes": 10_000,
				"tls":  scenario.Config{"enabled": true, "ca_file": broker.CAFile()},
				"sasl": scenario.Config{"mechanism": "scram-sha-512", "username": servers.KafkaUser, "password": servers.KafkaPassword},
			}},
			"mail": scenario.Config{"rabbitmq": scenario.Config{"url": rabbitURL()}},
		},
		"routes": []scenario.Config{
			{"match": scenario.Config{"topic": queue}, "sink": "mail"},
			{"match": scenario.Config{"topic": "*"}, "sink": "main"},
		},
		"http.token_file": tokenFile, "http.pprof": true,
	})
	relay.Environment = collector.Environment("http/protobuf") // with a secret in a header
	relay.Start()

	app := r.connect("app")
	insert := func(topic, payload string) {
		t.Helper()
		_, err := app.Exec(t.Context(), `INSERT INTO messaging.outbox (topic, key, payload, headers) VALUES ($1, 'k' || random(), convert_to($2, 'UTF8'), '{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}')`, topic, payload)
		try(t, err)
	}
	published := func(n int) {
		t.Helper()
		scenario.Await(t, 90*time.Second, fmt.Sprint(n, " messages to be published"), func() (bool, string) {
			return r.int(`SELECT count(*) FROM messaging.outbox WHERE published_at IS NOT NULL`) == n, relay.Log()
		})
	}
	// Payloads are secrets too.
	insert(topic, canary+" in a payload")
	insert(queue, canary+" in a payload")
	insert(topic, canary+strings.Repeat("x", 20_000)) // refused
	published(2)

	// Whatever it tells of itself.
	pages := map[string]string{}
	for _, path := range []string{
		"/livez", "/readyz", "/metrics", "/debug/pprof/", "/debug/pprof/goroutine?debug=2", "/debug/pprof/heap?debug=1", "/debug/pprof/allocs?debug=1",
		"/debug/pprof/threadcreate?debug=1", "/debug/pprof/mutex?debug=1", "/debug/pprof/block?debug=1", "/debug/pprof/symbol", "/debug/pprof/trace?seconds=1",
	} {
		status, body := getWithToken(t, "http://"+relay.Address+path, "token-"+canary)
		if status != http.StatusOK || body == "" {
			t.Errorf("GET %s: %d, %d bytes", path, status, len(body))
		}
		pages["GET "+path] = body
	}
	for _, path := range []string{"/metrics", "/debug/pprof/"} {
		if status, body := getWithToken(t, "http://"+relay.Address+path, "wrong"); status != http.StatusUnauthorized || body != "unauthorized\n" {
			t.Errorf("GET %s with a wrong token: %d %q", path, status, body)
		}
	}
	arguments, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", relay.PID()))
	try(t, err)
	pages["its arguments"] = string(arguments)
	for _, command := range [][]string{
		{"config", "print"}, {"check"}, {"check", "--output", "json"}, {"status"}, {"status", "--output", "json"}, {"parked", "list"},
		{"parked", "list", "--output", "json"}, {"dead", "list"}, {"healthcheck"}, {"version"},
	} {
		result := relay.Command(command...)
		pages["relay "+strings.Join(command, " ")] = result.Stdout + result.Stderr
		if result.Code == 2 || result.Stdout+result.Stderr == "" && command[0] != "healthcheck" {
			t.Errorf("relay %s: %s", strings.Join(command, " "), result)
		}
	}
	scenario.Await(t, 30*time.Second, "spans", func() (bool, string) { return len(collector.Spans(anySpan)) > 0, "there are none" })

	// Everything goes away and comes back.
	broker.Kill()
	r.exec("postgres", `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'relay'`)
	r.exec("postgres", `ALTER ROLE relay PASSWORD 'another'; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'relay'`)
	scenario.Await(t, 60*time.Second, "the password to be refused", func() (bool, string) {
		return strings.Contains(relay.Log(), "password authentication failed"), relay.Log()
	})
	insert(topic, "after")
	try(t, broker.Start(t.Context()))
	r.exec("postgres", `ALTER ROLE relay PASSWORD '`+canary+`'`)
	published(3)
	relay.Stop()

	pages["its spans"] = fmt.Sprintf("%+v", collector.Spans(anySpan))
	pages["its log"] = relay.Log()
	for what, text := range pages {
		for _, secret := range []string{canary, servers.KafkaPassword} {
			if at := strings.Index(text, secret); at >= 0 {
				t.Errorf("%s shows a secret: …%s…", what, text[max(0, at-200):min(len(text), at+100)])
			}
		}
	}
}

// getWithToken asks with a bearer token.
func getWithToken(t *testing.T, address, token string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, http.NoBody)
	try(t, err)
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := http.DefaultClient.Do(request)
	try(t, err)
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	try(t, err)
	return response.StatusCode, string(content)
}

func anySpan(scenario.Span) bool { return true }
