package config

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

const everySecret = `
database:
  url: postgres://u:c4n4ry@h/d?password=c4n4ry
  direct_url: host=h user=u password='c4n4ry' dbname=d
  password: ${CANARY}
outbox: {table: "$${x}", workers: 2, schema: "yes"}
sinks:
  kafka:
    kafka:
      brokers: [a:1, "b:2"]
      sasl: {mechanism: scram-sha-512, username: u, password: "${CANARY}"}
  broker:
    rabbitmq: {url: "amqps://u:${CANARY}@h/v", max_in_flight: 10, mandatory: false}
routes:
  - match: {topic: "a*", type: "[!b]"}
    sink: broker
    exchange: "null"
  - sink: kafka
    destination: "all.{type}"
failures: {backoff: {multiplier: 1.5, max: 90s}}
headers: debezium
http: {listen: ""}
`

func TestPrint(t *testing.T) {
	config := parseGood(t, everySecret)
	got := printed(t, config)
	want, err := os.ReadFile("testdata/printed.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("testdata/printed.yaml is not what is printed:\n%s", got)
	}
	for range 20 {
		if printed(t, config) != got {
			t.Fatal("the order changes")
		}
	}
	if strings.Contains(got, canary) {
		t.Errorf("a secret is printed:\n%s", got)
	}
	// Without its secrets it is the same configuration.
	again := parseGood(t, got)
	if printed(t, again) != got {
		t.Errorf("printed again:\n%s", printed(t, again))
	}
	for _, both := range []*Config{config, again} {
		both.table = nil // compiled regular expressions do not compare
		both.Database.URL, both.Database.DirectURL, both.Database.Password = "", "", ""
		both.Sinks["kafka"].Kafka.SASL.Password, both.Sinks["broker"].RabbitMQ.URL = "", ""
	}
	again.namesInbox = config.namesInbox // every section is printed
	if !reflect.DeepEqual(config, again) {
		t.Errorf("got  %+v\nwant %+v", again, config)
	}
}

func printed(t *testing.T, config *Config) string {
	t.Helper()
	var out strings.Builder
	if err := config.Print(&out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestPrintFollowsTheExampleFile(t *testing.T) {
	data, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	config, err := Parse("example", data, environment{"DATABASE_URL": "postgres://h/d"}.lookup)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for line := range strings.Lines(printed(t, config)) {
		if key, _, ok := strings.Cut(line, ":"); ok && line[0] != ' ' {
			keys = append(keys, key)
		}
	}
	at := -1
	for _, key := range keys {
		next := strings.Index(string(data), "\n"+key+":")
		if next <= at {
			t.Errorf("%s is printed in another place than in the example", key)
		}
		at = next
	}
}
