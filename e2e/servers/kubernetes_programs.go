package servers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// What a Kubernetes of the tests is made of. etcd is the distribution's.
const (
	// KubernetesVersion is of the API server, the controllers and the scheduler.
	KubernetesVersion = "v1.36.3"
	// HelmVersion is of helm.
	HelmVersion = "v3.22.0"

	// kwokVersion is of what plays the kubelet.
	kwokVersion = "v0.8.0"
	kwokModule  = "sigs.k8s.io/kwok"
	// operatorVersion is of the definitions of PodMonitor and its like.
	operatorVersion = "v0.85.0"
	operatorModule  = "github.com/prometheus-operator/prometheus-operator"

	// kubernetesVariable names a folder that has kube-apiserver,
	// kube-controller-manager, kube-scheduler and kwok, so that none is built.
	kubernetesVariable = "RELAY_TEST_KUBE_BIN"

	apiServer         = "kube-apiserver"
	controllerManager = "kube-controller-manager"
	scheduler         = "kube-scheduler"
	kwok              = "kwok"
	etcd              = "etcd"
)

// Helm builds helm unless the cache has it, and returns the program.
func Helm(ctx context.Context) (string, error) {
	return GoTool(ctx, "helm.sh/helm/v3/cmd/helm", HelmVersion)
}

// PrometheusOperatorDefinitions is the folder with the CustomResourceDefinitions
// of the Prometheus operator, monitoring.coreos.com_podmonitors.yaml and so on.
func PrometheusOperatorDefinitions(ctx context.Context) (string, error) {
	module, err := GoModule(ctx, operatorModule, operatorVersion)
	return filepath.Join(module, "example", "prometheus-operator-crd"), err
}

// ChartDeps gets what StartKubernetes and the tests of the Helm chart need
// beyond Deps. As there are no binaries in the registries that the tests use,
// it builds them, once: that takes two processors some ten minutes.
func ChartDeps(ctx context.Context, out io.Writer) error {
	if _, err := kubernetesPrograms(ctx, out); err != nil {
		return err
	}
	if _, err := GoModule(ctx, kwokModule, kwokVersion); err != nil {
		return err
	}
	if _, err := PrometheusOperatorDefinitions(ctx); err != nil {
		return err
	}
	for _, tool := range []func(context.Context) (string, error){Helm, HelmUnittest, HelmDocs} {
		if _, err := tool(ctx); err != nil {
			return err
		}
	}
	return nil
}

// kubernetesPrograms are the programs' paths, by their names.
func kubernetesPrograms(ctx context.Context, out io.Writer) (map[string]string, error) {
	programs := map[string]string{}
	var err error
	if programs[etcd], err = ensureEtcd(ctx, out); err != nil {
		return nil, err
	}
	if folder := os.Getenv(kubernetesVariable); folder != "" {
		for _, name := range []string{apiServer, controllerManager, scheduler, kwok} {
			programs[name] = filepath.Join(folder, name)
			if !exists(programs[name]) {
				return nil, fmt.Errorf("%s=%s: there is no %s in it", kubernetesVariable, folder, name)
			}
		}
		return programs, nil
	}
	for _, tool := range kubernetesTools() {
		if programs[tool.name()], err = tool.ensure(ctx, out); err != nil {
			return nil, err
		}
	}
	return programs, nil
}

// kubernetesTools are what is built.
func kubernetesTools() []goTool {
	major, rest, _ := strings.Cut(strings.TrimPrefix(KubernetesVersion, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	// Without its version the API server is v0.0.0, which charts refuse.
	const variables = "k8s.io/component-base/version."
	ldflags := []string{variables + "gitVersion=" + KubernetesVersion, variables + "gitMajor=" + major, variables + "gitMinor=" + minor}
	var tools []goTool
	for _, name := range []string{apiServer, controllerManager, scheduler} {
		tools = append(tools, goTool{
			pkg: "k8s.io/kubernetes/cmd/" + name, version: KubernetesVersion, ldflags: ldflags, prepare: requireKubernetes,
		})
	}
	tools[0].note = ", for the tests of the Helm chart; it is large: 7 minutes with two idle processors, once, and the next ones 4 more"
	return append(tools, goTool{pkg: kwokModule + "/cmd/kwok", version: kwokVersion})
}

// requireKubernetes makes the module in dir one that Kubernetes can be built
// in: its libraries, which its repository has in folders of its own, come from
// the modules that they are published as.
func requireKubernetes(ctx context.Context, dir string) error {
	kubernetes, err := downloadModule(ctx, "k8s.io/kubernetes", KubernetesVersion)
	if err != nil {
		return err
	}
	output, err := goCommand(ctx, dir, "mod", "edit", "-json", kubernetes.GoMod)
	if err != nil {
		return err
	}
	var file struct {
		Replace []struct{ Old, New struct{ Path string } }
	}
	if err := json.Unmarshal([]byte(output), &file); err != nil {
		return fmt.Errorf("reading %s: %w", kubernetes.GoMod, err)
	}
	edit := []string{"mod", "edit"}
	for _, replace := range file.Replace {
		if strings.HasPrefix(replace.New.Path, "./staging/") {
			published := "v0" + strings.TrimPrefix(KubernetesVersion, "v1")
			edit = append(edit, fmt.Sprintf("-replace=%s=%s@%s", replace.Old.Path, replace.Old.Path, published))
		}
	}
	_, err = goCommand(ctx, dir, edit...)
	return err
}

// ensureEtcd is etcd's program: the system's, or that of the distribution's
// package, unpacked into the cache. No service is installed.
func ensureEtcd(ctx context.Context, out io.Writer) (string, error) {
	if program, err := exec.LookPath(etcd); err == nil {
		return program, nil
	}
	home, err := ensure(ctx, out, etcd, etcd, func(dir string) error {
		return unpackPackage(ctx, "etcd-server", dir)
	})
	return filepath.Join(home, "usr", "bin", etcd), err
}
