package main

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestVersion(t *testing.T) {
	want := "relay " + builtVersion + " (commit " + builtCommit + ", " + runtime.Version() + ")\n"
	if got := execute(t, "version"); got.stdout != want || got.code != 0 {
		t.Errorf("got %s\nwant %s", got, want)
	}
	got := decode[map[string]string](t, execute(t, "version", "--output", "json"))
	if want := map[string]string{"version": builtVersion, "commit": builtCommit, "go": runtime.Version()}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestVersionOfAnUntaggedBuild(t *testing.T) {
	for name, value := range map[string]string{"version": readBuild().Version, "commit": readBuild().Commit} {
		if value == "" {
			t.Errorf("%s is empty", name)
		}
	}
}

func TestConfigPrintMasksSecrets(t *testing.T) {
	file := write(t, `
database: {url: "postgres://relay:hunter2@db.example/shop", direct_url: "host=db.example password=hunter2"}
sinks:
  main:
    kafka:
      brokers: ["k:9092"]
      sasl: {mechanism: plain, username: alice, password: hunter2}
  mail:
    rabbitmq: {url: "amqp://bob:hunter2@mq.example/"}
routes: [{match: {topic: "mail.*"}, sink: mail}, {sink: main}]
`)
	got := execute(t, "config", "print", "--config", file)
	got.expect(t, 0, words{"***", "batch_size: 1000", "username: alice", "db.example", "mq.example"}, nil)
	// What it prints is a configuration but for the secrets.
	again := execute(t, "config", "print", "--config", write(t, got.stdout))
	again.expect(t, 0, words{"batch_size: 1000"}, nil)
}

func TestMigratePrintsWithoutADatabase(t *testing.T) {
	execute(t, "migrate", "--print", "--config", write(t, minimal)).expect(t, 0, words{`CREATE TABLE "public"."outbox"`, "COMMIT;"}, nil)
}

func TestHealthcheck(t *testing.T) {
	for _, test := range []struct {
		name   string
		status int
		code   int
		says   words
	}{
		{"ready", http.StatusOK, 0, nil},
		{"not ready", http.StatusServiceUnavailable, 1, words{"/readyz answered 503", "no database yet"}},
		{"something else", http.StatusNotFound, 1, words{"/readyz answered 404"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/readyz" {
					t.Errorf("it asks for %s", r.URL.Path)
				}
				w.WriteHeader(test.status)
				if test.status != http.StatusOK {
					_, _ = w.Write([]byte("no database yet\n"))
				}
			}))
			defer server.Close()
			file := write(t, strings.Replace(minimal, `listen: "127.0.0.1:1"`, `listen: "`+server.Listener.Addr().String()+`"`, 1))
			execute(t, "healthcheck", "--config", file).expect(t, test.code, nil, test.says)
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		execute(t, "healthcheck", "--config", write(t, minimal)).expect(t, 1, nil, words{"connection refused"})
	})
	t.Run("on all addresses", func(t *testing.T) {
		server := httptest.NewServer(http.NotFoundHandler())
		defer server.Close()
		_, port, _ := strings.Cut(server.Listener.Addr().String(), ":")
		file := write(t, strings.Replace(minimal, `listen: "127.0.0.1:1"`, `listen: "0.0.0.0:`+port+`"`, 1))
		execute(t, "healthcheck", "--config", file).expect(t, 1, nil, words{"404"})
	})
	t.Run("turned off", func(t *testing.T) {
		file := write(t, strings.Replace(minimal, `listen: "127.0.0.1:1"`, `listen: ""`, 1))
		execute(t, "healthcheck", "--config", file).expect(t, 2, nil, words{"http.listen is empty"})
	})
	t.Run("no answer", func(t *testing.T) {
		hang := make(chan struct{})
		server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
		defer server.Close()
		defer close(hang)
		file := write(t, strings.Replace(minimal, `listen: "127.0.0.1:1"`, `listen: "`+server.Listener.Addr().String()+`"`, 1))
		began := time.Now()
		execute(t, "healthcheck", "--timeout", "200ms", "--config", file).expect(t, 1, nil, words{"deadline exceeded"})
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

func TestPruneNeedsARetention(t *testing.T) {
	execute(t, "prune", "--config", write(t, minimal+"outbox: {retention: 0s}\ninbox: {retention: 0s}\n")).expect(t, 2, nil, words{"outbox.retention and inbox.retention are 0"})
}

func TestCheckOfflineReachesNothing(t *testing.T) {
	// Neither the database nor the broker of minimal is there.
	execute(t, "check", "--offline", "--config", write(t, minimal)).expect(t, 0, words{"ok", "configuration: is valid"}, nil)
	execute(t, "check", "--offline", "--config", write(t, minimal+"outbox: {workers: many}\n")).expect(t, 2, nil, words{"outbox.workers"})
	brokers := `brokers: ["127.0.0.1:1"]`
	file := write(t, strings.Replace(minimal, brokers, brokers+"\n      sasl: {mechanism: plain, username: u, password_file: /does/not/exist}", 1))
	execute(t, "check", "--offline", "--config", file).expect(t, 2, nil, words{"password_file", "/does/not/exist"})
}

func TestRunRefusesATakenAddress(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	file := write(t, strings.Replace(minimal, `listen: "127.0.0.1:1"`, `listen: "`+server.Listener.Addr().String()+`"`, 1))
	execute(t, "run", "--config", file).expect(t, 1, nil, words{"http.listen", "address already in use", "choose another"})
}

func TestUnreachableDatabase(t *testing.T) {
	file := write(t, minimal)
	for _, arguments := range [][]string{{"migrate"}, {"migrate", "--dry-run"}, {"prune"}} {
		t.Run(strings.Join(arguments, " "), func(t *testing.T) {
			execute(t, append(arguments, "--config", file)...).expect(t, 1, nil, words{"connection refused", "check that the server in database.url runs"})
		})
	}
}
