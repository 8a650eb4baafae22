package chart_test

import (
	"strings"
	"testing"
)

// Wrong values are refused before anything is made, with the path.
func TestWrongValuesAreRefused(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	before := n.inventory()
	for _, refused := range []struct {
		set  []string
		want string
	}{
		{[]string{"--set", "replicaCount=many"}, "/replicaCount"},
		{[]string{"--set", "replicas=2"}, "'replicas'"},
		{[]string{"--set", "image.tags=1.0"}, "'tags'"},
		{[]string{"--set", "image.pullPolicy=Sometimes"}, "/image/pullPolicy"},
		{[]string{"--set", "checkOnStart=yes please"}, "/checkOnStart"},
		{[]string{"--set", "resources=small"}, "/resources"},
		{[]string{"--set", "migration.enabled=1"}, "/migration/enabled"},
		{[]string{"--set", "metrics.podMonitor.interval=5"}, "/metrics/podMonitor/interval"},
		{[]string{"--set", "networkPolicy.egress=all"}, "/networkPolicy/egress"},
		{[]string{"--set", "config.outbox.workerz=4"}, "workerz"},
		{[]string{"--set", "database.url=postgres://u:canary@db/orders"}, "database.existingSecret and database.url"},
		{[]string{"--set", "config.database.url=postgres://u:canary@db/orders", "--set", "database.existingSecret.name="}, "config.database.url"},
		{[]string{"--set", "database.existingSecret.name="}, "database.existingSecret.name"},
		{[]string{"--set", "credentials.mian.kafkaUser.existingSecret=x", "--set", "credentials.mian.kafkaUser.type=scram-sha-512"}, "credentials.mian"},
		{[]string{"--set", "config.shutdown_timeout=2m"}, "terminationGracePeriodSeconds"},
	} {
		r := n.helm(append([]string{"install", release, chart, "--values", "testdata/defaults.yaml"}, refused.set...)...)
		if r.code == 0 || !strings.Contains(r.stderr, refused.want) {
			t.Errorf("%v: expected to be refused with %q: %s", refused.set, refused.want, r)
		}
		if strings.Contains(r.stderr, "canary") {
			t.Errorf("%v: the refusal has the secret in it: %s", refused.set, r)
		}
		if r.code == 0 {
			n.mustHelm("uninstall", release)
		}
	}
	n.awaitNothingBut(before)
}
