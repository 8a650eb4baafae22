package servers

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"time"
)

// Kubernetes is a real API server with its etcd, its controllers and its
// scheduler, and one Node. There is no kubelet and nothing runs in pods: kwok
// reports them as running, or as completed when they are of the kind that
// completes (restartPolicy Never or OnFailure), whatever they contain.
type Kubernetes struct {
	*instance
	token    string
	programs map[string]string
	client   *http.Client
}

// The index of each port.
const (
	kubernetesAPI = iota
	kubernetesEtcd
	kubernetesEtcdPeer
	kubernetesControllers
	kubernetesScheduler
	kubernetesPorts
)

// kubernetesLimit bounds the start of one of the programs.
const kubernetesLimit = 3 * time.Minute

// StartKubernetes starts a Kubernetes and returns when its Node is ready.
func StartKubernetes(ctx context.Context) (*Kubernetes, error) {
	programs, err := kubernetesPrograms(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	in, err := newInstance("kubernetes", scratchPlace(false, ""), kubernetesPorts)
	if err != nil {
		return nil, err
	}
	k := &Kubernetes{instance: in, token: rand.Text(), programs: programs, client: newKubernetesClient()}
	if err := errors.Join(k.writeKeys(), k.writeKubeconfig(), k.writeStages(ctx)); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	if err := k.start(ctx); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// URL is the API's address; its certificate is nobody's that is known.
func (k *Kubernetes) URL() string { return "https://" + k.ports[kubernetesAPI].address() }

// Kubeconfig is the path of a file for clients who may do everything.
func (k *Kubernetes) Kubeconfig() string { return k.scratch.path("kubeconfig") }

// Close stops everything and removes what it wrote.
func (k *Kubernetes) Close() error {
	// The API server last, so that nobody complains of its absence.
	for _, helper := range k.helpers {
		helper.kill()
	}
	k.Kill()
	k.client.CloseIdleConnections()
	return k.close()
}

// start starts the programs, each as soon as what it needs answers.
func (k *Kubernetes) start(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	client, peer := "http://"+k.ports[kubernetesEtcd].address(), "http://"+k.ports[kubernetesEtcdPeer].address()
	if err := k.help(etcd, "--data-dir", k.dataPath(), "--unsafe-no-fsync", "--initial-cluster", "default="+peer,
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer); err != nil {
		return err
	}
	// It waits for etcd by itself.
	command := exec.Command(k.programs[apiServer],
		"--etcd-servers="+client, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
		"--secure-port="+k.ports[kubernetesAPI].String(), "--cert-dir="+k.scratch.path("apiserver"),
		"--token-auth-file="+k.scratch.path("tokens.csv"), "--authorization-mode=RBAC",
		"--service-cluster-ip-range=10.0.0.0/24", "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-signing-key-file="+k.scratch.path("sa.key"), "--service-account-key-file="+k.scratch.path("sa.key"),
		"--endpoint-reconciler-type=none",
		// It cannot stream lists from an etcd as old as distributions have, 3.4;
		// kwok would ask for them again and again, and see nothing meanwhile.
		"--feature-gates=WatchList=false")
	command.Dir = k.scratch.dir
	process, err := startProcess(apiServer, command, k.LogPath())
	if err != nil {
		return err
	}
	k.process = process
	if err := k.await(ctx, process, k.ready); err != nil {
		return err
	}
	kubeconfig := "--kubeconfig=" + k.Kubeconfig()
	if err := k.help(controllerManager, kubeconfig, "--bind-address=127.0.0.1", "--leader-elect=false",
		"--service-account-private-key-file="+k.scratch.path("sa.key"),
		"--secure-port="+k.ports[kubernetesControllers].String(), "--cert-dir="+k.scratch.path("controllers")); err != nil {
		return err
	}
	if err := k.help(scheduler, kubeconfig, "--bind-address=127.0.0.1", "--leader-elect=false",
		"--secure-port="+k.ports[kubernetesScheduler].String(), "--cert-dir="+k.scratch.path("scheduler")); err != nil {
		return err
	}
	if err := k.help(kwok, kubeconfig, "--manage-all-nodes=true", "--config="+k.stages(),
		"--node-lease-duration-seconds=40"); err != nil {
		return err
	}
	return k.startNode(ctx)
}

// await waits for the program, and fails at once when one of the others ends.
func (k *Kubernetes) await(ctx context.Context, p *process, probe func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return p.awaitReady(ctx, kubernetesLimit, func(ctx context.Context) error {
		if err := k.alive(); err != nil {
			cancel()
			return err
		}
		return probe(ctx)
	})
}

// help starts one of the programs beside the API server.
func (k *Kubernetes) help(name string, args ...string) error {
	command := exec.Command(k.programs[name], args...)
	command.Dir = k.scratch.dir
	// kwok reads settings in the user's home.
	command.Env = append(os.Environ(), "HOME="+k.scratch.dir)
	helper, err := startProcess(name, command, k.scratch.path(name+".log"))
	if err != nil {
		return err
	}
	k.helpers = append(k.helpers, helper)
	return nil
}

// alive says which of the programs that should run has ended, and why.
func (k *Kubernetes) alive() error {
	var errs []error
	for _, p := range append([]*process{k.process}, k.helpers...) {
		if !p.running() {
			errs = append(errs, &ExitError{Name: p.name, Err: p.err, Log: p.output()})
		}
	}
	return errors.Join(errs...)
}

// writeKeys writes the one user's token and the key that service accounts'
// tokens are signed with.
func (k *Kubernetes) writeKeys() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("making the key of service accounts: %w", err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	return errors.Join(
		os.WriteFile(k.scratch.path("sa.key"), block, 0o600),
		os.WriteFile(k.scratch.path("tokens.csv"), []byte(k.token+`,admin,admin,"system:masters"`+"\n"), 0o600),
	)
}

func (k *Kubernetes) writeKubeconfig() error {
	return os.WriteFile(k.Kubeconfig(), fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
  - name: test
    cluster: {server: %q, insecure-skip-tls-verify: true}
users:
  - name: admin
    user: {token: %q}
contexts:
  - name: test
    context: {cluster: test, user: admin}
current-context: test
`, k.URL(), k.token), 0o600)
}
