package metrics_test

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	inboxmetrics "github.com/outboxrelay/relay/inbox/metrics"
	"github.com/outboxrelay/relay/internal/metrics"
	"github.com/outboxrelay/relay/sinks"
)

var update = flag.Bool("update", false, "write docs/metrics.md")

const page = "../../docs/metrics.md"

// collectors notes what is registered.
type collectors struct {
	prometheus.Registerer
	all []prometheus.Collector
}

func (c *collectors) MustRegister(all ...prometheus.Collector) { c.all = append(c.all, all...) }

var description = regexp.MustCompile(`^Desc\{fqName: "([^"]+)", help: "((?:[^"\\]|\\.)*)", constLabels: \{\}, variableLabels: \{([^}]*)\}\}$`)

// TestPageIsGenerated compares docs/metrics.md with the code; go test
// ./internal/metrics -update writes it.
func TestPageIsGenerated(t *testing.T) {
	var relay, consumers collectors
	metrics.New(&relay, metrics.Build{}, nil)
	inboxmetrics.New(&consumers)
	want := `# Metrics

Generated from the code: the [relay's](#the-relay) and the [inbox's](#the-inbox). No label is a key or an id.
[Runbooks](runbooks/) say what to do about the alerts that go by them.

## The relay

The relay serves them at ` + "`/metrics`" + ` of its listener (` + "`http.listen`" + `), beside Go's and the process's own. There are at most
` + fmt.Sprint(metrics.MaxTopics) + ` values of ` + "`topic`" + `; what comes beyond them counts as ` + "`" + metrics.OtherTopics + "`" + `.

A topic's series are there from the start when a route names it without wildcards, and from its first message on otherwise.
Its failures begin with the reason ` + "`" + sinks.ReasonOther + "`" + ` at 0; the [other reasons](failures.md) come with the first failure of each.

` + relay.table(t) + `
## The inbox

Consumers that use the [inbox library](inbox.md#metrics) serve them where they serve their own metrics. ` + "`consumer`" + ` is
` + "`Inbox.Consumer`" + `, ` + "`source`" + ` the Kafka topic or RabbitMQ queue. There are at most ` + fmt.Sprint(inboxmetrics.MaxSources) + ` values of ` + "`source`" + `; what comes beyond
them counts as ` + "`" + inboxmetrics.OtherSources + "`" + `. Those of partitions, of put aside messages, of acknowledgements and of what is up
come from the consumers of packages ` + "`inbox/kafka`" + ` and ` + "`inbox/rabbitmq`" + `, the others from ` + "`Process`" + ` and its like too.

` + consumers.table(t)
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the code says; go test ./internal/metrics -update writes it", page)
	}
}

// table lists what was registered.
func (c *collectors) table(t *testing.T) string {
	t.Helper()
	var lines []string
	for _, c := range c.all {
		descriptions := make(chan *prometheus.Desc, 10)
		c.Describe(descriptions)
		close(descriptions)
		kind := "gauge"
		switch c.(type) {
		case prometheus.Histogram, *prometheus.HistogramVec:
			kind = "histogram"
		case *prometheus.CounterVec:
			kind = "counter"
		}
		if _, settable := c.(prometheus.Gauge); !settable {
			if _, ok := c.(prometheus.Counter); ok {
				kind = "counter"
			}
		}
		for d := range descriptions {
			m := description.FindStringSubmatch(d.String())
			if m == nil {
				t.Fatalf("cannot read %s", d)
			}
			labels := ""
			if m[3] != "" {
				labels = "`" + strings.ReplaceAll(m[3], ",", "`, `") + "`"
			}
			if strings.HasSuffix(m[1], "_total") { // also what is no counter of the library's
				kind = "counter"
			}
			lines = append(lines, fmt.Sprintf("| `%s` | %s | %s | %s |\n", m[1], kind, labels, m[2]))
		}
	}
	slices.Sort(lines)
	return "| metric | type | labels | |\n|---|---|---|---|\n" + strings.Join(lines, "")
}

// TestAlertsAndDashboardNameWhatThereIs finds metrics in them that the code does
// not have.
func TestAlertsAndDashboardNameWhatThereIs(t *testing.T) {
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	chart := os.DirFS("../../deploy/helm/outbox-relay/files")
	names := regexp.MustCompile(`outbox_relay_[a-z_]+`)
	suffixes := regexp.MustCompile(`_(bucket|sum|count)$`)
	found := 0
	files := []string{"dashboard.json"}
	alerts, err := os.ReadDir("../../deploy/helm/outbox-relay/files/alerts")
	if err != nil {
		t.Fatal(err)
	}
	for _, alert := range alerts {
		files = append(files, "alerts/"+alert.Name())
	}
	for _, file := range files {
		text, err := readFile(chart, file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names.FindAllString(text, -1) {
			found++
			if !strings.Contains(string(data), "`"+name+"`") && !strings.Contains(string(data), "`"+suffixes.ReplaceAllString(name, "")+"`") {
				t.Errorf("%s: %s is no metric of the relay", file, name)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d metrics are named", found)
	}
	for _, alert := range alerts {
		runbook := "../../docs/runbooks/" + strings.TrimSuffix(alert.Name(), ".yaml") + ".md"
		if _, err := os.Stat(runbook); err != nil {
			t.Errorf("%s has no runbook: %v", alert.Name(), err)
		}
	}
}

func readFile(files fs.FS, name string) (string, error) {
	data, err := fs.ReadFile(files, name)
	return string(data), err
}
