package chart_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// replicaSet is the part of a ReplicaSet that tests look at.
type replicaSet struct {
	object
	Spec struct {
		Replicas int
		Template struct{ Metadata metadata }
	}
}

// active returns the one ReplicaSet that has pods.
func (n *namespace) active() replicaSet {
	n.t.Helper()
	var active []replicaSet
	// A Deployment is complete before its old pods are counted out.
	scenario.Await(n.t, settleLimit, "one ReplicaSet with pods", func() (bool, string) {
		active = slices.DeleteFunc(n.replicaSets(), func(r replicaSet) bool { return r.Spec.Replicas == 0 })
		return len(active) == 1, fmt.Sprintf("there are %d", len(active))
	})
	return active[0]
}

func (n *namespace) replicaSets() []replicaSet {
	n.t.Helper()
	return list[replicaSet](n, "apps/v1", "replicasets", "")
}

// configuration is relay.yaml as the ConfigMap has it.
func (n *namespace) configuration() string {
	n.t.Helper()
	var configMap struct{ Data map[string]string }
	n.get("v1", "configmaps", fullName, &configMap)
	return configMap.Data["relay.yaml"]
}

// fullName is the name of the release's resources.
const fullName = release + "-outbox-relay"

// A release's life: a changed configuration rolls the pods, an unchanged one
// does not, a rollback brings the old pods back, and nothing is left of it.
func TestReleasesLife(t *testing.T) {
	needsBuilt(t)
	t.Parallel()
	for name, files := range map[string][]string{
		"defaults":   {"testdata/defaults.yaml"},
		"complete":   {"testdata/complete.yaml"},
		"inline URL": {"testdata/defaults.yaml", "testdata/inline-url.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNamespace(t)
			before := n.inventory()
			n.install(files...)
			n.checkHooks()
			first := n.active()
			n.checkPods(first.Spec.Replicas)
			if n.configuration() == "" {
				t.Error("the ConfigMap has no relay.yaml")
			}

			n.upgrade(files...)
			if same := n.active(); same.Metadata.Name != first.Metadata.Name {
				t.Errorf("an upgrade that changes nothing replaces the pods of %s by those of %s", first.Metadata.Name, same.Metadata.Name)
			}

			n.upgrade(append(files, values{"config": values{"log": values{"level": "debug"}}}.file(t))...)
			second := n.active()
			if second.Metadata.Name == first.Metadata.Name {
				t.Error("a changed configuration does not replace the pods")
			}
			if !strings.Contains(n.configuration(), "level: debug") {
				t.Errorf("the ConfigMap lacks the change:\n%s", n.configuration())
			}
			if maps.Equal(first.Spec.Template.Metadata.Annotations, second.Spec.Template.Metadata.Annotations) {
				t.Errorf("no checksum changed: %v", second.Spec.Template.Metadata.Annotations)
			}
			n.checkPods(first.Spec.Replicas)

			n.mustHelm("rollback", release, "1", "--wait", "--timeout", waitLimit.String())
			if third := n.active(); third.Metadata.Name != first.Metadata.Name {
				t.Errorf("after the rollback the pods are of %s, not of %s again", third.Metadata.Name, first.Metadata.Name)
			}
			if strings.Contains(n.configuration(), "level: debug") {
				t.Errorf("after the rollback the ConfigMap has the change still:\n%s", n.configuration())
			}

			n.mustHelm("test", release, "--timeout", waitLimit.String())
			n.checkHooks()

			n.mustHelm("uninstall", release, "--wait", "--timeout", waitLimit.String())
			n.awaitNothingBut(before)
		})
	}
}

// checkHooks fails the test unless every hook that ran succeeded.
func (n *namespace) checkHooks() {
	n.t.Helper()
	for kind, phase := range n.hooks() {
		if phase != "Succeeded" && phase != "" {
			n.t.Errorf("the hook's %s is %q", kind, phase)
		}
	}
}

// checkPods fails the test unless so many pods of the Deployment are ready.
func (n *namespace) checkPods(count int) {
	n.t.Helper()
	var deployment struct{ Status struct{ ReadyReplicas int } }
	scenario.Await(n.t, settleLimit, "the Deployment's pods", func() (bool, string) {
		n.get("apps/v1", "deployments", fullName, &deployment)
		return deployment.Status.ReadyReplicas == count, fmt.Sprintf("%d of %d are ready", deployment.Status.ReadyReplicas, count)
	})
}

// awaitNothingBut waits until the namespace has what it had.
func (n *namespace) awaitNothingBut(before []string) {
	n.t.Helper()
	scenario.Await(n.t, settleLimit, "the end of what the release made", func() (bool, string) {
		left := slices.DeleteFunc(n.inventory(), func(name string) bool { return slices.Contains(before, name) })
		return len(left) == 0, strings.Join(left, ", ")
	})
}

// The migration comes before the relays: it is waited for and cleaned up, and
// one that does not come about leaves the relays as they are.
func TestMigrationIsWaitedFor(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.install("testdata/defaults.yaml", values{"migration": values{"enabled": true}}.file(t))
	if phase := n.hooks()["Job"]; phase != "Succeeded" {
		t.Errorf("the migration's Job is %q", phase)
	}
	// A Job that succeeded is removed, and with it the pods.
	if jobs := list[object](n, "batch/v1", "jobs", ""); len(jobs) > 0 {
		t.Errorf("the migration leaves %v", jobs)
	}
	// The namespace takes no Job any more.
	quota := []byte(`{"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}`)
	if err := n.kubernetes.Call(t.Context(), http.MethodPost, n.path("v1", "resourcequotas"), quota, nil); err != nil {
		t.Fatal(err)
	}
	revision := n.active().Metadata.Name
	r := n.helm("upgrade", release, chart, "--wait", "--timeout", "1m", "--reuse-values", "--set", "config.log.level=debug")
	if r.code == 0 || !strings.Contains(r.stderr, "pre-upgrade") {
		t.Errorf("expected the upgrade to fail in its hook: %s", r)
	}
	if now := n.active().Metadata.Name; now != revision {
		t.Errorf("the pods were replaced although the migration failed")
	}
}
