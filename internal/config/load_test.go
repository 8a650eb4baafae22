package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/internal/admin"
	"github.com/outboxrelay/relay/internal/delivery"
	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/kafka"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// environment is a set of variables for tests.
type environment map[string]string

func (e environment) lookup(name string) (string, bool) {
	value, ok := e[name]
	return value, ok
}

// canary is a secret that must not appear anywhere.
const canary = "c4n4ry"

var testEnvironment = environment{"CANARY": canary, "EMPTY": "", "STRUCTURE": "a: [b\n- c4n4ry", "HOST": "db.example"}

const minimal = "sinks: {main: {kafka: {brokers: [localhost:9092]}}}\n"

// TestBadFiles loads testdata/*.bad.yaml. The lines of each that begin with
// "#! " are the errors that it must give, all of them and no others; … stands
// for any text.
func TestBadFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/*.bad.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".bad.yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for line := range strings.Lines(string(data)) {
				if expected, ok := strings.CutPrefix(line, "#! "); ok {
					want = append(want, strings.TrimSpace(expected))
				}
			}
			config, err := Parse("relay.yaml", data, testEnvironment.lookup)
			if config != nil || err == nil {
				t.Fatalf("loaded: %+v", config)
			}
			if _, ok := errors.AsType[Errors](err); !ok {
				t.Errorf("the error is a %T", err)
			}
			if strings.Contains(err.Error(), canary) {
				t.Errorf("a secret is shown: %v", err)
			}
			got := strings.Split(err.Error(), "\n")
			for i := range max(len(got), len(want)) {
				switch {
				case i >= len(want):
					t.Errorf("not expected:\n\t#! %s", got[i])
				case i >= len(got):
					t.Errorf("missing:\n\t%s", want[i])
				case !like(want[i]).MatchString(got[i]):
					t.Errorf("got\n\t#! %s\nwant\n\t#! %s", got[i], want[i])
				}
			}
		})
	}
}

func like(pattern string) *regexp.Regexp {
	return regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(pattern), "…", ".*") + "$")
}

func parseGood(t *testing.T, text string) *Config {
	t.Helper()
	config, err := Parse("relay.yaml", []byte(text), testEnvironment.lookup)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func TestDefaultsOfTheContract(t *testing.T) {
	got := parseGood(t, "database: {url: 'postgres://h/d'}\nsinks: {main: {kafka: {brokers: [a:1]}}, mail: {rabbitmq: {url: 'amqp://h/'}}}\nroutes: [{sink: mail, match: {topic: a}}, {sink: main}]")
	kafkaSink, rabbitSink := kafka.Defaults(), rabbitmq.Defaults()
	kafkaSink.Brokers, rabbitSink.URL = []string{"a:1"}, "amqp://h/"
	want := &Config{
		Database: Database{URL: "postgres://h/d", MaxConnections: 8},
		Outbox: source.Config{
			Schema: "public", Table: "outbox", Mode: "poll", Ordering: "key", OnPublished: "mark", Retention: 24 * time.Hour,
			BatchSize: 1000, Workers: 4, PollInterval: 100 * time.Millisecond, Notify: true, PublishTimeout: 30 * time.Second,
		},
		Inbox: Inbox{Schema: "public", Table: "inbox", Retention: 360 * time.Hour},
		Sinks: map[string]Sink{"main": {Kafka: &kafkaSink}, "mail": {RabbitMQ: &rabbitSink}},
		Routes: []route.Config{
			{Match: route.Match{Topic: "a", Type: "*"}, Sink: "mail", Destination: "{topic}", OnFailure: "park"},
			{Match: route.Match{Topic: "*", Type: "*"}, Sink: "main", Destination: "{topic}", OnFailure: "park"},
		},
		Failures: delivery.Failures{
			Policy: "park", MaxAttempts: 5,
			Backoff:    delivery.Backoff{Initial: 200 * time.Millisecond, Max: 30 * time.Second, Multiplier: 2, Jitter: 0.2},
			DeadLetter: delivery.DeadLetterCopy{Destination: "dead.{topic}"},
		},
		Headers: sinks.StylePlain, Source: "/outbox", HTTP: admin.Config{Listen: "127.0.0.1:9464"},
		Log: Log{Level: "info", Format: "auto"}, ShutdownTimeout: 30 * time.Second,
		table: got.table, files: map[string]string{},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if kafkaSink.ClientID != "outbox-relay" || kafkaSink.Compression != "none" || kafkaSink.MaxMessageBytes != 1_000_000 {
		t.Errorf("Kafka's defaults: %+v", kafkaSink)
	}
	if !rabbitSink.Mandatory || !rabbitSink.Persistent || rabbitSink.Order != "strict" || rabbitSink.MaxInFlight != 1000 {
		t.Errorf("RabbitMQ's defaults: %+v", rabbitSink)
	}
}

func TestNullAndEmptyKeepDefaults(t *testing.T) {
	got := parseGood(t, "database:\noutbox: {table: , workers: null, retention: ~}\nroutes: []\nfailures: {}\nhttp: {listen: ''}\n"+minimal)
	if got.Outbox != Default().Outbox || got.Failures != Default().Failures {
		t.Errorf("%+v", got)
	}
	if got.HTTP.Listen != "" {
		t.Errorf("http.listen: %q", got.HTTP.Listen)
	}
}

func TestValuesInRange(t *testing.T) {
	got := parseGood(t, minimal+`
outbox: {retention: 0, batch_size: 100000, workers: 64, poll_interval: 1ms, publish_timeout: "10m", notify: false, table: "Größe", ordering: total, on_published: delete}
database: {max_connections: 65}
failures: {backoff: {multiplier: 1, jitter: 1, initial: 30s}}
shutdown_timeout: 0s
headers: cloudevents
source: https://example.com/orders
`)
	if got.Outbox.Retention != 0 || got.Outbox.Workers != 64 || got.Outbox.PublishTimeout != 10*time.Minute || got.Outbox.Notify || got.Outbox.Table != "Größe" {
		t.Errorf("%+v", got.Outbox)
	}
	if got.ShutdownTimeout != 0 || got.Failures.Backoff.Multiplier != 1 {
		t.Errorf("%+v", got)
	}
}

func TestAliases(t *testing.T) {
	got := parseGood(t, `
sinks:
  a: {kafka: {brokers: &brokers [x:1], tls: &tls {enabled: true, server_name: broker}}}
  b: {kafka: {brokers: *brokers, tls: *tls}}
routes: [{match: {topic: a}, sink: a}, {sink: b}]
`)
	if !reflect.DeepEqual(got.Sinks["a"], got.Sinks["b"]) || !got.Sinks["b"].Kafka.TLS.Enabled {
		t.Errorf("%+v", got.Sinks)
	}
}

func TestMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "absent.yaml")
	_, err := Load(path, nil)
	want := "configuration file " + path + ": no such file or directory; name another with --config FILE or $RELAY_CONFIG"
	if err == nil || err.Error() != want || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if _, err := Load(t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "--config") {
		t.Errorf("a folder: %v", err)
	}
}

func TestLoadUsesTheProcessEnvironment(t *testing.T) {
	t.Setenv("RELAY_TEST_TABLE", "events")
	path := filepath.Join(t.TempDir(), "relay.yaml")
	if err := os.WriteFile(path, []byte(minimal+"outbox: {table: '${RELAY_TEST_TABLE}'}"), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := Load(path, nil)
	if err != nil || config.Outbox.Table != "events" {
		t.Errorf("%+v, %v", config, err)
	}
}

func TestEmptyFiles(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "null", "{}"} {
		_, err := Parse("relay.yaml", []byte(text), testEnvironment.lookup)
		if err == nil || !strings.HasPrefix(err.Error(), "relay.yaml:1: sinks: no sink is configured") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestErrorsAreErrors(t *testing.T) {
	_, err := Parse("relay.yaml", []byte("a: 1\nb: 2\n"+minimal), testEnvironment.lookup)
	one, ok := errors.AsType[*Error](err)
	if !ok || one.Line != 1 || one.Path != "a" || one.File != "relay.yaml" || one.Message == "" {
		t.Errorf("%#v", one)
	}
	if all, ok := errors.AsType[Errors](err); !ok || len(all) != 2 {
		t.Errorf("%v", err)
	}
}
