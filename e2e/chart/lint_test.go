package chart_test

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/e2e/servers"
)

// kubeVersion is what charts are rendered for where no server says it.
var kubeVersion = []string{"--kube-version", servers.KubernetesVersion}

// examples are the files of values that the chart's README shows.
func examples(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(chart + "/examples/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("expected the chart's examples, found %v, %v", files, err)
	}
	return files
}

// render renders the chart without a server, and fails the test if it is refused.
func render(t *testing.T, args ...string) string {
	t.Helper()
	r := runHelm(t, nil, append(append([]string{"template", release, chart, "--namespace", "shop"}, kubeVersion...), args...)...)
	if r.code != 0 {
		t.Fatalf("helm template %v: %s", args, r)
	}
	return r.stdout
}

// copyCharts copies the charts of deploy/helm, since helm and helm-docs write
// into their folders.
func copyCharts(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	if err := os.CopyFS(folder, os.DirFS(filepath.Dir(chart))); err != nil {
		t.Fatal(err)
	}
	return folder
}

// copyExample copies the application's chart together with the relay's as its
// dependency, and returns its folder.
func copyExample(t *testing.T) string {
	t.Helper()
	folder := filepath.Join(copyCharts(t), "examples", "orders")
	home := t.TempDir()
	if r := runHelm(t, []string{"HELM_CACHE_HOME=" + home, "HELM_CONFIG_HOME=" + home, "HELM_DATA_HOME=" + home}, "dependency", "update", folder); r.code != 0 {
		t.Fatalf("helm dependency update: %s", r)
	}
	return folder
}

func TestChartsPassHelmLint(t *testing.T) {
	t.Parallel()
	lint := func(folder string, flags ...string) {
		t.Helper()
		r := runHelm(t, nil, append(append([]string{"lint", "--strict", folder}, kubeVersion...), flags...)...)
		if r.code != 0 || strings.Contains(r.stdout, "[INFO]") {
			t.Errorf("helm lint %s %v: %s", folder, flags, r)
		}
	}
	for _, values := range append(examples(t), chart+"/tests/values/minimal.yaml") {
		lint(chart, "--values", values)
	}
	lint(copyExample(t))
}

func TestPodsStartAnewWhenTheConfigurationChanges(t *testing.T) {
	t.Parallel()
	checksum := func(flags ...string) string {
		t.Helper()
		manifest := render(t, append([]string{"--show-only", "templates/deployment.yaml", "--values", chart + "/tests/values/minimal.yaml"}, flags...)...)
		found := regexp.MustCompile(`outbox-relay/checksum-config: ([0-9a-f]{64})\n`).FindStringSubmatch(manifest)
		if found == nil {
			t.Fatalf("no checksum in %s", manifest)
		}
		return found[1]
	}
	before := checksum()
	for flag, changed := range map[string]bool{
		"config.log.level=debug":                              true,
		"database.directExistingSecret.name=direct":           true,
		"credentials.main.clusterCA.existingSecret=authority": true,
		"replicaCount=5":                                      false,
		"metrics.podMonitor.enabled=true":                     false,
		"resources.limits.memory=1Gi":                         false,
		"deployment.annotations.example\\.com/owner=orders":   false,
	} {
		if after := checksum("--set", flag); (after != before) != changed {
			t.Errorf("%s: the checksum went from %s to %s", flag, before, after)
		}
	}
}

func TestPackageHoldsWhatUsersNeed(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	if r := runHelm(t, nil, "package", chart, "--destination", folder); r.code != 0 {
		t.Fatalf("helm package: %s", r)
	}
	packages, err := filepath.Glob(folder + "/outbox-relay-*.tgz")
	if err != nil || len(packages) != 1 {
		t.Fatalf("%v, %v", packages, err)
	}
	names := entries(t, packages[0])
	for _, name := range []string{"Chart.yaml", "README.md", "values.yaml", "values.schema.json", "templates/NOTES.txt", "templates/tests/check.yaml", "files/dashboard.json", "examples/production.yaml"} {
		if !names["outbox-relay/"+name] {
			t.Errorf("%s is not in the package", name)
		}
	}
	for name := range names {
		if strings.HasPrefix(name, "outbox-relay/tests/") || strings.HasSuffix(name, ".gotmpl") {
			t.Errorf("%s is in the package", name)
		}
	}
}

// entries are the names of an archive's files.
func entries(t *testing.T, path string) map[string]bool {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	compressed, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	archive, names := tar.NewReader(compressed), map[string]bool{}
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names[header.Name] = true
	}
}
