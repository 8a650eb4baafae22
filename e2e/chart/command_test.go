package chart_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// relayPod returns a pod of the release's Deployment, as the API has it.
func (n *namespace) relayPod() pod {
	n.t.Helper()
	pods := slices.DeleteFunc(list[pod](n, "v1", "pods", "app.kubernetes.io/instance="+release), func(p pod) bool { return len(p.Spec.Containers) == 0 })
	if len(pods) == 0 {
		n.t.Fatalf("the release has no pods\n%s", n.describe())
	}
	return pods[0]
}

// runHook runs the command of the release's hook of the kind, Job or Pod, and
// fails the test unless it succeeds. Hooks that succeed are removed: what the
// API would have of them is asked again, and what they bring is made again for
// as long as the command runs.
func (n *namespace) runHook(kind string) result {
	n.t.Helper()
	var hook pod
	for _, m := range parseManifests(n.t, n.mustHelm("get", "hooks", release)) {
		switch m.Kind {
		case "ConfigMap", "Secret":
			if _, err := n.send(m, ""); err != nil {
				n.t.Fatal(err)
			}
			path := n.path("v1", strings.ToLower(m.Kind)+"s") + "/" + m.Metadata.Name
			defer func() {
				if err := n.kubernetes.Call(n.t.Context(), http.MethodDelete, path, nil, nil); err != nil {
					n.t.Error(err)
				}
			}()
		case kind:
			hook = n.podOf(m)
		}
	}
	if len(hook.Spec.Containers) == 0 {
		n.t.Fatalf("the release has no hook that is a %s", kind)
	}
	r := newSandbox(n, hook, hook.Spec.Containers[0]).run()
	if r.code != 0 {
		n.t.Fatalf("the command of the %s that is a hook: %s", kind, r)
	}
	return r
}

// podOf returns the Pod, or the one that a Job makes, with the API's defaults.
func (n *namespace) podOf(m manifest) pod {
	n.t.Helper()
	answer, err := n.create(m)
	if err != nil {
		n.t.Fatal(err)
	}
	var p pod
	var job struct{ Spec struct{ Template pod } }
	if m.Kind == "Pod" {
		err = json.Unmarshal(answer.Body, &p)
	} else if err = json.Unmarshal(answer.Body, &job); err == nil {
		p = job.Spec.Template
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

// listen is a port for the relay's listener that nobody else takes.
func listen(t testing.TB) string {
	t.Helper()
	address, release, err := servers.TakeAddress()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return ":" + port
}

// stop stops the relay as the kubelet does, and fails the test unless it ends
// in order, before the kubelet would kill it.
func (s *sandbox) stop(p interface {
	Signal(os.Signal)
	Wait(time.Duration) bool
	Err() error
	Tail(int) string
}) {
	s.t.Helper()
	p.Signal(syscall.SIGTERM)
	grace := time.Duration(s.pod.Spec.TerminationGracePeriodSeconds) * time.Second
	if !p.Wait(grace) {
		s.t.Fatalf("container %s runs still, %v after SIGTERM; its log ends with:\n%s", s.container.Name, grace, p.Tail(20))
	}
	if err := p.Err(); err != nil {
		s.t.Errorf("container %s ended with %v after SIGTERM; its log ends with:\n%s", s.container.Name, err, p.Tail(20))
	}
}

// relays inserts a row of the topic and waits until the broker has it.
func relays(t testing.TB, database *scenario.Database, log scenario.Log, topic string) {
	t.Helper()
	payload := fmt.Sprintf(`{"topic": %q}`, topic)
	id := scenario.One[string](t, database, `INSERT INTO outbox (topic, key, payload) VALUES ($1, 'k', $2) RETURNING message_id::text`, topic, []byte(payload))
	scenario.Await(t, settleLimit, "the row in the broker", func() (bool, string) {
		records, err := log.Records(t.Context())
		if err != nil {
			return false, err.Error()
		}
		found := slices.ContainsFunc(records, func(r scenario.Record) bool { return r.MessageID.String() == id })
		return found, fmt.Sprintf("%s is not among %d records of %s", id, len(records), topic)
	})
}

// With nothing but a database and a broker given, the pod's command relays.
func TestCommandOfTheDefaults(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	database, log := scenario.NewDatabase(t), scenario.NewKafkaLog(t)
	n.secret("orders-db-app", map[string]string{"uri": database.URL})
	n.install(values{
		"database": values{"existingSecret": values{"name": "orders-db-app"}},
		"config": values{
			"sinks": values{"main": values{"kafka": values{"brokers": servers.FromEnvironment().KafkaBrokers}}},
			"http":  values{"listen": listen(t)},
		},
	}.file(t))
	p := n.relayPod()
	s := newSandbox(n, p, p.Spec.Containers[0])
	// As the notes say.
	if r := s.run("relay", "migrate"); r.code != 0 {
		t.Fatalf("relay migrate: %s", r)
	}
	for _, c := range p.Spec.InitContainers {
		if r := newSandbox(n, p, c).run(); r.code != 0 {
			t.Fatalf("init container %s: %s", c.Name, r)
		}
	}
	process := s.start()
	relays(t, database, log, log.Topics()[0])
	for _, args := range [][]string{{"relay", "status"}, {"relay", "healthcheck"}} {
		if r := s.run(args...); r.code != 0 {
			t.Errorf("%v: %s", args, r)
		}
	}
	s.stop(process)
	if r := n.runHook("Pod"); !strings.Contains(r.stdout, "ok") {
		t.Errorf("helm test's command finds nothing good: %s", r)
	}
}

// With secrets as Strimzi, CloudNativePG and RabbitMQ's operator make them, and
// everything else turned on, the commands of the pod, of the migration and of
// helm test do their work.
func TestCommandsWithOperatorsSecrets(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	kafka, err := servers.StartKafka(t.Context(), servers.KafkaOptions{Secure: true})
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, kafka)
	ca, err := os.ReadFile(kafka.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	database := scenario.NewDatabase(t)
	events, mail := scenario.NewKafkaTopics(t, kafka.Brokers(), 1, 3), scenario.NewRabbitLog(t)
	n.secret(release+"-db-app", map[string]string{"uri": database.URL})
	n.secret("orders-db-direct", map[string]string{"uri": database.URL})
	n.secret("orders-db-owner", map[string]string{"uri": database.URL})
	n.secret(servers.KafkaUser, map[string]string{"password": servers.KafkaPassword})
	n.secret("events-cluster-ca-cert", map[string]string{"ca.crt": string(ca)})
	n.secret("mail-default-user", map[string]string{"connection_string": servers.FromEnvironment().RabbitMQURL})
	n.secret("orders-relay-token", map[string]string{"token": "a-token"})
	n.install("testdata/complete.yaml", values{
		"config": values{
			"sinks": values{"main": values{"kafka": values{"brokers": kafka.SASLSSLBrokers()}}},
			"routes": []values{
				{"match": values{"topic": mail.Topics()[0]}, "sink": "mail"},
				{"match": values{"topic": "*"}, "sink": "main"},
			},
			"http": values{"listen": listen(t)},
		},
		"credentials": values{"main": values{"kafkaUser": values{"existingSecret": servers.KafkaUser}}},
	}.file(t))

	n.runHook("Job")
	p := n.relayPod()
	for _, c := range p.Spec.InitContainers {
		if c.Image != p.Spec.Containers[0].Image {
			continue // the user's own
		}
		if r := newSandbox(n, p, c).run(); r.code != 0 {
			t.Fatalf("init container %s: %s", c.Name, r)
		}
	}
	s := newSandbox(n, p, p.Spec.Containers[0])
	process := s.start()
	relays(t, database, events, events.Topics()[0])
	relays(t, database, mail, mail.Topics()[0])
	for token, want := range map[string]int{"": http.StatusUnauthorized, "a-token": http.StatusOK} {
		if status, err := s.fetch("http", "relay-http", "/metrics", token); err != nil || status != want {
			t.Errorf("/metrics with the token %q: expected %d, got %d, %v", token, want, status, err)
		}
	}
	s.stop(process)
	n.runHook("Pod")
}

// What the schema cannot see in config, the init step says, in the same words
// as `relay check` does locally, and where kubectl describe shows it.
func TestInvalidConfigurationIsExplained(t *testing.T) {
	needsBuilt(t)
	t.Parallel()
	for name, config := range map[string]values{
		"a route to nowhere":    {"routes": []values{{"match": values{"topic": "*"}, "sink": "nowhere"}}},
		"an unset variable":     {"source": "/${NOBODY_SETS_THIS}"},
		"two mistakes":          {"outbox": values{"schema": "${ONE}"}, "source": "${TWO}"},
		"a file that is absent": {"database": values{"password_file": "/etc/outbox-relay/absent"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNamespace(t)
			const url = "postgres://relay@127.0.0.1:1/orders"
			n.secret("orders-db-app", map[string]string{"uri": url})
			n.install("testdata/defaults.yaml", values{"config": config}.file(t))
			p := n.relayPod()
			if len(p.Spec.InitContainers) != 1 {
				t.Fatalf("expected one init container, the check, got %d", len(p.Spec.InitContainers))
			}
			for _, c := range append(p.Spec.InitContainers, p.Spec.Containers...) {
				if c.TerminationMessagePolicy != "FallbackToLogsOnError" {
					t.Errorf("the status of container %s does not tell why it ended: terminationMessagePolicy is %s", c.Name, c.TerminationMessagePolicy)
				}
			}
			s := newSandbox(n, p, p.Spec.InitContainers[0])
			inPod := s.run()

			const inContainer = "/etc/outbox-relay/relay.yaml"
			local := filepath.Join(t.TempDir(), "relay.yaml")
			if err := os.WriteFile(local, []byte(n.configuration()), 0o600); err != nil {
				t.Fatal(err)
			}
			here := scenario.Command(t, []string{"DATABASE_URL=" + url}, "check", "--config", local)
			want := strings.ReplaceAll(here.Stdout+here.Stderr, local, inContainer)
			if here.Code != 2 || inPod.code != 2 {
				t.Errorf("expected exit code 2, got %d in the pod and %d here", inPod.code, here.Code)
			}
			if inPod.stdout != want || want == "" {
				t.Errorf("expected of the init step what relay check says here:\n%s\ngot\n%s", want, inPod.stdout)
			}
			// The kubelet takes the log's last 2048 bytes into the status.
			if len(inPod.stdout) > 2048 {
				t.Errorf("the message of %d bytes is too long for the pod's status:\n%s", len(inPod.stdout), inPod.stdout)
			}
		})
	}
}
