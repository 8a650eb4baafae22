package chart_test

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/outboxrelay/relay/e2e/servers"
)

// manifest is one object as helm renders it.
type manifest struct {
	object
	// template is the file that it comes from, in the chart's folder.
	template string
	text     string
}

var sourcePattern = regexp.MustCompile(`(?m)^# Source: [^/]+/(\S+)$`)

// render renders a chart for the namespace, hooks and tests included.
func (n *namespace) render(chart string, files ...string) []manifest {
	n.t.Helper()
	return parseManifests(n.t, n.mustHelm(append([]string{"template", release, chart, "--validate"}, flags(files)...)...))
}

func parseManifests(t testing.TB, text string) []manifest {
	t.Helper()
	var manifests []manifest
	for _, document := range strings.Split("\n"+text, "\n---\n") {
		var m manifest
		m.text = document
		// JSON's names: an object's fields in Go are without tags.
		var fields struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string
			Metadata   struct{ Name, Namespace string }
		}
		if err := yaml.Unmarshal([]byte(document), &fields); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if fields.Kind == "" {
			continue
		}
		m.APIVersion, m.Kind, m.Metadata.Name, m.Metadata.Namespace = fields.APIVersion, fields.Kind, fields.Metadata.Name, fields.Metadata.Namespace
		if source := sourcePattern.FindStringSubmatch(document); source != nil {
			m.template = source[1]
		}
		manifests = append(manifests, m)
	}
	return manifests
}

// create sends the manifest to the API, which does everything but store it, and
// refuses fields that it does not know or that are there twice.
func (n *namespace) create(m manifest) (servers.KubernetesAnswer, error) {
	n.t.Helper()
	return n.send(m, "?dryRun=All&fieldValidation=Strict")
}

// send sends the manifest to be created, with the options.
func (n *namespace) send(m manifest, options string) (servers.KubernetesAnswer, error) {
	n.t.Helper()
	path, resources := cluster.of(n.t, m.APIVersion)
	for _, r := range resources {
		if r.Kind != m.Kind || strings.Contains(r.Name, "/") {
			continue
		}
		if r.Namespaced {
			in := m.Metadata.Namespace
			if in == "" {
				in = n.name
			}
			path += "/namespaces/" + in
		}
		return n.kubernetes.Send(n.t.Context(), http.MethodPost, path+"/"+r.Name+options, "application/yaml", []byte(m.text))
	}
	return servers.KubernetesAnswer{}, fmt.Errorf("%s has no kind %s", m.APIVersion, m.Kind)
}

// mustCreate fails the test unless the API takes the manifest, without a word.
func (n *namespace) mustCreate(m manifest) {
	n.t.Helper()
	answer, err := n.create(m)
	if err != nil {
		n.t.Errorf("%s: %s %s: %v\n%s", m.template, m.Kind, m.Metadata.Name, err, m.text)
	}
	for _, warning := range answer.Warnings {
		n.t.Errorf("%s: %s %s: warning: %s", m.template, m.Kind, m.Metadata.Name, warning)
	}
}

// Every manifest of every template is one that the API takes, strictly, where
// the Pod Security Standard "restricted" is enforced, and without a warning.
func TestManifestsAreAccepted(t *testing.T) {
	t.Parallel()
	rendered := map[string]bool{}
	for _, files := range [][]string{
		{"testdata/defaults.yaml"},
		{"testdata/complete.yaml"},
		{"testdata/complete.yaml", "testdata/service-monitor.yaml"},
		{"testdata/defaults.yaml", "testdata/inline-url.yaml"},
	} {
		n := newNamespace(t)
		for _, m := range n.render(chart, files...) {
			rendered[m.template] = true
			n.mustCreate(m)
			if m.Kind == "ServiceAccount" {
				// No pod is admitted without its own.
				if _, err := n.send(m, ""); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, pattern := range []string{"templates/*.yaml", "templates/*/*.yaml"} {
		paths, err := filepath.Glob(filepath.Join(chart, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			template, err := filepath.Rel(chart, path)
			if err != nil {
				t.Fatal(err)
			}
			if !rendered[template] {
				t.Errorf("no values of this test turn %s on", template)
			}
		}
	}
}

// What the test above relies on: the API refuses and warns.
func TestTheAPIIsStrict(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	for _, refused := range []struct{ manifest, message string }{
		{"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndate: {a: b}\n", `unknown field "date"`},
		{"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata:\n  a: b\n  a: c\n", `key "a" already set`},
		{"apiVersion: monitoring.coreos.com/v1\nkind: PodMonitor\nmetadata: {name: x}\nspec: {selector: {}, podMetricsEndpoint: []}\n", `unknown field "spec.podMetricsEndpoint"`},
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: a, image: b}]}\n", `violates PodSecurity "restricted`},
	} {
		_, err := n.create(parseManifests(t, refused.manifest)[0])
		refusal, ok := errors.AsType[*servers.KubernetesError](err)
		if !ok || !strings.Contains(refusal.Message, refused.message) {
			t.Errorf("expected a refusal with %q, got %v", refused.message, err)
		}
	}
	deployment := "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec:\n  selector: {matchLabels: {a: b}}\n" +
		"  template:\n    metadata: {labels: {a: b}}\n    spec: {containers: [{name: a, image: b}]}\n"
	answer, err := n.create(parseManifests(t, deployment)[0])
	if err != nil || len(answer.Warnings) == 0 {
		t.Errorf("expected a warning about a Deployment with unrestricted pods, got %v and %v", answer.Warnings, err)
	}
}
