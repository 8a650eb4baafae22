package chart_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

const (
	// clusterLimit bounds the cluster's start, and the build before that.
	clusterLimit = 40 * time.Minute
	// settleLimit bounds what controllers do by themselves.
	settleLimit = 2 * time.Minute
)

// cluster is the one Kubernetes of this package's tests, started by the first
// that needs it. TestMain closes it.
var cluster sharedCluster

type sharedCluster struct {
	once       sync.Once
	kubernetes *servers.Kubernetes
	err        error

	mu sync.Mutex
	// resources are what a group and version of the API has.
	resources map[string][]resource
}

// get starts the Kubernetes unless it runs.
func (c *sharedCluster) get(t testing.TB) *servers.Kubernetes {
	t.Helper()
	needsBuilt(t)
	c.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), clusterLimit)
		defer cancel()
		if c.kubernetes, c.err = servers.StartKubernetes(ctx); c.err == nil {
			c.err = c.define(ctx)
		}
	})
	if c.err != nil {
		t.Fatal(c.err)
	}
	return c.kubernetes
}

func (c *sharedCluster) close(keepLogs bool) {
	if c.kubernetes == nil {
		return
	}
	if keepLogs {
		_ = c.kubernetes.KeepLogs(filepath.Join(servers.LogsDir(), "shared"))
	}
	_ = c.kubernetes.Close() // what it leaves, the next run removes
}

// define makes the kinds of the Prometheus operator known.
func (c *sharedCluster) define(ctx context.Context) error {
	folder, err := servers.PrometheusOperatorDefinitions(ctx)
	if err != nil {
		return err
	}
	for _, plural := range []string{"podmonitors", "servicemonitors", "prometheusrules"} {
		definition, err := os.ReadFile(filepath.Join(folder, "monitoring.coreos.com_"+plural+".yaml"))
		if err != nil {
			return err
		}
		const path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
		if _, err := c.kubernetes.Send(ctx, http.MethodPost, path, "application/yaml", definition); err != nil {
			return fmt.Errorf("define %s: %w", plural, err)
		}
	}
	for {
		// Known is what the API can list.
		var missing error
		for _, plural := range []string{"podmonitors", "servicemonitors", "prometheusrules"} {
			missing = errors.Join(missing, c.kubernetes.Call(ctx, http.MethodGet, "/apis/monitoring.coreos.com/v1/"+plural, nil, nil))
		}
		if missing == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the Prometheus operator's kinds do not become known: %w", missing)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// resource is a kind of object, as discovery tells.
type resource struct {
	Name, Kind string
	Namespaced bool
	Verbs      []string
}

// of returns the resources of a group and version, such as apps/v1, and the
// path that they are under.
func (c *sharedCluster) of(t testing.TB, groupVersion string) (path string, resources []resource) {
	t.Helper()
	path = "/apis/" + groupVersion
	if !strings.Contains(groupVersion, "/") {
		path = "/api/" + groupVersion
	}
	k := c.get(t)
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.resources[groupVersion]; ok {
		return path, known
	}
	var list struct{ Resources []resource }
	if err := k.Call(t.Context(), http.MethodGet, path, nil, &list); err != nil {
		t.Fatalf("what %s has: %v", groupVersion, err)
	}
	if c.resources == nil {
		c.resources = map[string][]resource{}
	}
	c.resources[groupVersion] = list.Resources
	return path, list.Resources
}

// namespace is a namespace of the test's own, in which the Pod Security
// Standard "restricted" is enforced, and warned about in what makes pods.
type namespace struct {
	t          testing.TB
	kubernetes *servers.Kubernetes
	name       string
	// home has helm's files.
	home string
}

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	n := &namespace{t: t, kubernetes: cluster.get(t), name: fmt.Sprintf("test-%08x", rand.Uint32()), home: t.TempDir()}
	body := fmt.Appendf(nil, `{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": %q, "labels": {
		"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}}}`, n.name)
	if err := n.kubernetes.Call(t.Context(), http.MethodPost, "/api/v1/namespaces", body, nil); err != nil {
		t.Fatalf("make the namespace: %v", err)
	}
	// Without its service account no pod is admitted.
	scenario.Await(t, settleLimit, "the namespace's service account", func() (bool, string) {
		err := n.kubernetes.Call(t.Context(), http.MethodGet, n.path("v1", "serviceaccounts")+"/default", nil, nil)
		return err == nil, fmt.Sprint(err)
	})
	return n
}

// path is where the API has the objects of a resource in the namespace.
func (n *namespace) path(groupVersion, plural string) string {
	prefix := "/apis/"
	if !strings.Contains(groupVersion, "/") {
		prefix = "/api/"
	}
	return prefix + groupVersion + "/namespaces/" + n.name + "/" + plural
}

// secret makes a Secret.
func (n *namespace) secret(name string, data map[string]string) {
	n.t.Helper()
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Secret", "metadata": map[string]string{"name": name}, "stringData": data,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.kubernetes.Call(n.t.Context(), http.MethodPost, n.path("v1", "secrets"), body, nil); err != nil {
		n.t.Fatalf("make the secret %s: %v", name, err)
	}
}

// get reads an object into result.
func (n *namespace) get(groupVersion, plural, name string, result any) {
	n.t.Helper()
	if err := n.kubernetes.Call(n.t.Context(), http.MethodGet, n.path(groupVersion, plural)+"/"+name, nil, result); err != nil {
		n.t.Fatal(err)
	}
}

// list returns the objects that have the labels, in the order of their names.
func list[T any](n *namespace, groupVersion, plural, labels string) []T {
	n.t.Helper()
	var found struct{ Items []T }
	if err := n.kubernetes.Call(n.t.Context(), http.MethodGet, n.path(groupVersion, plural)+"?labelSelector="+labels, nil, &found); err != nil {
		n.t.Fatal(err)
	}
	return found.Items
}

// inventory names everything in the namespace but Events, which tell what was.
func (n *namespace) inventory() []string {
	n.t.Helper()
	var groups struct {
		Groups []struct{ PreferredVersion struct{ GroupVersion string } }
	}
	if err := n.kubernetes.Call(n.t.Context(), http.MethodGet, "/apis", nil, &groups); err != nil {
		n.t.Fatal(err)
	}
	versions := []string{"v1"}
	for _, group := range groups.Groups {
		versions = append(versions, group.PreferredVersion.GroupVersion)
	}
	var names []string
	for _, version := range versions {
		_, resources := cluster.of(n.t, version)
		for _, r := range resources {
			if !r.Namespaced || r.Kind == "Event" || strings.Contains(r.Name, "/") || !strings.Contains(strings.Join(r.Verbs, " "), "list") {
				continue
			}
			for _, object := range list[object](n, version, r.Name, "") {
				names = append(names, fmt.Sprintf("%s %s", r.Kind, object.Metadata.Name))
			}
		}
	}
	return names
}

// object is what all objects have.
type object struct {
	APIVersion string
	Kind       string
	Metadata   metadata
}

type metadata struct {
	Name, Namespace string
	Labels          map[string]string
	Annotations     map[string]string
}
