package chart_test

import (
	"slices"
	"testing"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// The example of an application's chart has the relay as a native sidecar in
// its pods, which come up, and it relays.
func TestSidecarOfTheExample(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	example := copyExample(t)
	database, log := scenario.NewDatabase(t), scenario.NewKafkaLog(t)
	n.secret(release+"-db-app", map[string]string{"uri": database.URL})
	files := values{"outbox-relay": values{"config": values{
		"sinks": values{"main": values{"kafka": values{"brokers": servers.FromEnvironment().KafkaBrokers}}},
		"http":  values{"listen": listen(t)},
	}}}.file(t)
	for _, m := range n.render(example, files) {
		n.mustCreate(m)
	}
	before := n.inventory()
	n.installChart(example, files)

	p, sidecar := n.sidecar()
	for _, status := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if !status.Ready {
			t.Errorf("container %s is not ready", status.Name)
		}
	}
	if p.Status.Phase != "Running" {
		t.Errorf("the pod is %s", p.Status.Phase)
	}
	if slices.ContainsFunc(p.Spec.Containers, func(c container) bool { return c.Image == sidecar.Image }) {
		t.Error("the relay is among the pod's containers, not only a sidecar")
	}
	n.runHook("Job")
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != "Always" {
			if r := newSandbox(n, p, c).run(); r.code != 0 {
				t.Errorf("init container %s: %s", c.Name, r)
			}
		}
	}
	s := newSandbox(n, p, sidecar)
	process := s.start()
	relays(t, database, log, log.Topics()[0])
	s.stop(process)

	n.mustHelm("uninstall", release, "--wait", "--timeout", waitLimit.String())
	n.awaitNothingBut(before)
}

// sidecar returns the pod of the release that has the relay as a native
// sidecar, and that.
func (n *namespace) sidecar() (pod, container) {
	n.t.Helper()
	for _, p := range list[pod](n, "v1", "pods", "") {
		for _, c := range p.Spec.InitContainers {
			if c.RestartPolicy == "Always" && slices.Equal(c.Args, []string{"run"}) {
				return p, c
			}
		}
	}
	n.t.Fatalf("no pod has the relay as an init container that is restarted always\n%s", n.describe())
	return pod{}, container{}
}
