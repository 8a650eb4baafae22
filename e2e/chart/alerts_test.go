package chart_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/outboxrelay/relay/e2e/servers"
)

func promtool(t *testing.T) string {
	t.Helper()
	folder, err := servers.Prometheus(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(folder, "promtool")
}

// writeYAML writes a value into a file of its own.
func writeYAML(t *testing.T, path string, value any) {
	t.Helper()
	content, err := yaml.Marshal(value)
	if err == nil {
		err = os.WriteFile(path, content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func readYAML(t *testing.T, path string, value any) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err == nil {
		err = yaml.Unmarshal(content, value)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// rules writes the rules that the chart renders into a file.
func rules(t *testing.T, folder string, flags ...string) string {
	t.Helper()
	var rule struct {
		Spec map[string]any
	}
	manifest := render(t, append([]string{
		"--show-only", "templates/prometheusrule.yaml", "--values", chart + "/tests/values/minimal.yaml",
		"--set", "metrics.prometheusRule.enabled=true",
	}, flags...)...)
	if err := yaml.Unmarshal([]byte(manifest), &rule); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "rules.yaml")
	writeYAML(t, path, rule.Spec)
	return path
}

// Each alert fires when it should and is silent when it should not: promtool
// plays the series of the chart's tests/alerts to the rules as they are rendered.
func TestAlerts(t *testing.T) {
	t.Parallel()
	program, folder := promtool(t), t.TempDir()
	output := runTool(t, program, "check", "rules", rules(t, folder, "--set", "metrics.podMonitor.enabled=true"))
	alerts, err := filepath.Glob(chart + "/files/alerts/*.yaml")
	if err != nil || len(alerts) == 0 {
		t.Fatalf("%v, %v", alerts, err)
	}
	tests, err := filepath.Glob(chart + "/tests/alerts/*.yaml")
	if err != nil || len(tests) != len(alerts) {
		t.Errorf("%d alerts have %d files of tests, %v", len(alerts), len(tests), err)
	}
	t.Log(output)
	for _, alert := range alerts {
		name := strings.TrimSuffix(filepath.Base(alert), ".yaml")
		t.Run(name, func(t *testing.T) {
			var series struct {
				Tests []struct {
					AlertRuleTest []struct {
						Alertname string
						ExpAlerts []any `yaml:"exp_alerts"`
					} `yaml:"alert_rule_test"`
				}
			}
			file := chart + "/tests/alerts/" + name + ".yaml"
			readYAML(t, file, &series)
			fires, silent := 0, 0
			for _, test := range series.Tests {
				for _, moment := range test.AlertRuleTest {
					switch {
					case moment.Alertname != name:
						t.Errorf("%s asks for %s", file, moment.Alertname)
					case len(moment.ExpAlerts) > 0:
						fires++
					default:
						silent++
					}
				}
			}
			if fires == 0 || silent < 2 {
				t.Errorf("%s expects it to fire %d times and to be silent %d times", file, fires, silent)
			}
			content, err := os.ReadFile(file)
			if err == nil {
				err = os.WriteFile(filepath.Join(folder, name+".yaml"), content, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			runTool(t, program, "test", "rules", filepath.Join(folder, name+".yaml"))
		})
	}
}

// The files of alerts are rules by themselves, for those who have no Helm.
func TestAlertsAreRulesWithoutHelm(t *testing.T) {
	t.Parallel()
	alerts, err := filepath.Glob(chart + "/files/alerts/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	for _, file := range alerts {
		var alert map[string]any
		readYAML(t, file, &alert)
		if alert["alert"] != strings.TrimSuffix(filepath.Base(file), ".yaml") {
			t.Errorf("%s has the alert %v", file, alert["alert"])
		}
		all = append(all, alert)
	}
	path := filepath.Join(t.TempDir(), "rules.yaml")
	writeYAML(t, path, map[string]any{"groups": []any{map[string]any{"name": "all", "rules": all}}})
	runTool(t, promtool(t), "check", "rules", path)
}

// What the dashboards ask Prometheus for is PromQL, and can be narrowed to a
// namespace and a release, and where there are topics to a topic; inboxes' to a
// consumer.
func TestDashboardAsksWhatPrometheusUnderstands(t *testing.T) {
	t.Parallel()
	checkDashboard(t, "dashboard.json", "datasource namespace job topic", regexp.MustCompile(`(outbox_relay_[a-z_]+)\{([^}]*)\}`), func(metric string) string {
		if regexp.MustCompile(`_(published_total|publish_failures_total|given_up_total|pending_messages|oldest_pending_age_seconds|parked_keys|dead_letters)$`).MatchString(metric) {
			return `, topic=~"$topic"`
		}
		return ""
	})
	checkDashboard(t, "dashboard-inbox.json", "datasource namespace job consumer", regexp.MustCompile(`(inbox_[a-z_]+)\{([^}]*?)(?:, result=[^}]*)?\}`), func(string) string {
		return `, consumer=~"$consumer"`
	})
}

// checkDashboard checks one; narrower is what else a metric is selected by.
func checkDashboard(t *testing.T, file, variables string, selector *regexp.Regexp, narrower func(metric string) string) {
	t.Helper()
	content, err := os.ReadFile(chart + "/files/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Templating struct{ List []struct{ Name string } }
		Panels     []struct {
			Title, Description string
			Targets            []struct{ Expr string }
		}
		Annotations struct{ List []struct{ Expr string } }
	}
	if err := json.Unmarshal(content, &dashboard); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, variable := range dashboard.Templating.List {
		names = append(names, variable.Name)
	}
	if got := strings.Join(names, " "); got != variables {
		t.Errorf("%s: its variables are %s", file, got)
	}
	var records []any
	add := func(expr string) {
		expr = strings.NewReplacer("$__rate_interval", "5m", "$namespace", "shop", "$job", "orders", "$topic", "orders", "$consumer", "shipping").Replace(expr)
		records = append(records, map[string]string{"record": "panel:expr", "expr": expr, "labels": ""})
	}
	for _, panel := range dashboard.Panels {
		if panel.Description == "" || len(panel.Targets) == 0 {
			t.Errorf("%s has no description, or shows nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			add(target.Expr)
			for _, found := range selector.FindAllStringSubmatch(target.Expr, -1) {
				want := `namespace=~"$namespace", job=~"$job"` + narrower(found[1])
				if found[2] != want {
					t.Errorf("%s: %s goes by {%s}, not {%s}", panel.Title, found[1], found[2], want)
				}
			}
		}
	}
	for _, annotation := range dashboard.Annotations.List {
		add(annotation.Expr)
	}
	if len(records) < 20 {
		t.Errorf("it asks for %d things only", len(records))
	}
	for i, record := range records {
		rule := record.(map[string]string)
		delete(rule, "labels")
		rule["record"] += "_" + string(rune('a'+i%26)) + string(rune('a'+i/26))
	}
	path := filepath.Join(t.TempDir(), file+".yaml")
	writeYAML(t, path, map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": records}}})
	runTool(t, promtool(t), "check", "rules", path)
}
