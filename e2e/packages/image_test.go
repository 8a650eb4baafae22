package packages_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/outboxrelay/relay/e2e/child"
	"github.com/outboxrelay/relay/e2e/scenario"
)

// baseImage is what the image's Dockerfile begins with. A stand-in of the same
// name takes its place: no registry is needed, and none is asked.
const baseImage = "gcr.io/distroless/static-debian12:nonroot"

// podman is a container engine with a store of its own. Its command runs where
// no second hierarchy of control groups is mounted, which its runtime refuses.
type podman struct {
	t     *testing.T
	store string
}

func newPodman(t *testing.T) *podman {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("building and running the image takes root")
	}
	needs(t, "podman", "crun", "unshare")
	// podman refuses a path of more than 50 characters, as t.TempDir's are.
	store, err := os.MkdirTemp("", "podman-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(store) })
	return &podman{t, store}
}

func (p *podman) arguments(arguments ...string) []string {
	return append([]string{
		"--mount", "--propagation", "private", "sh", "-c", `umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"`, "sh",
		"podman", "--root", filepath.Join(p.store, "store"), "--runroot", filepath.Join(p.store, "run"),
		"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", "crun",
	}, arguments...)
}

func (p *podman) run(arguments ...string) string {
	p.t.Helper()
	return output(p.t, "unshare", p.arguments(arguments...)...)
}

// hardened are the options that an operator would run it with, and those that
// an engine inside another one needs.
var hardened = []string{
	"--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges", "--network=host",
	"--cgroups=disabled", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--pull=never",
}

// standIn imports an image with what the distroless one has and the relay
// needs: authorities, and a user that is not root.
func (p *podman) standIn(architecture string) {
	p.t.Helper()
	dir := p.t.TempDir()
	authorities, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		p.t.Fatal(err)
	}
	for path, content := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n",
		"etc/group":  "root:x:0:\nnonroot:x:65532:\n", "etc/ssl/certs/ca-certificates.crt": string(authorities),
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(path)), 0o755); err != nil {
			p.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o644); err != nil {
			p.t.Fatal(err)
		}
	}
	archive := filepath.Join(p.t.TempDir(), "base.tar")
	output(p.t, "tar", "-C", dir, "-cf", archive, ".")
	p.run("import", "--arch", architecture, "--change", "USER=65532", archive, baseImage)
}

// build builds the image of the release for an architecture, from the files that
// goreleaser hands to Docker.
func (p *podman) build(d *dist, architecture string) (image string) {
	p.t.Helper()
	p.standIn(architecture)
	dir := p.t.TempDir()
	for from, to := range map[string]string{
		d.path(d.the("Binary", "linux", architecture)): "linux/" + architecture + "/relay",
		root + "/LICENSE": "LICENSE", root + "/THIRD_PARTY_LICENSES": "THIRD_PARTY_LICENSES",
	} {
		content, err := os.ReadFile(from)
		if err != nil {
			p.t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(to)), 0o755); err != nil {
			p.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, to), content, 0o755); err != nil {
			p.t.Fatal(err)
		}
	}
	image = "localhost/outbox-relay:" + architecture
	p.run("build", "--pull=never", "--format=docker", "--platform=linux/"+architecture, "--tag", image,
		"--file", root+"/deploy/image/Dockerfile", dir)
	return image
}

// The image, built by the released Dockerfile from the released binaries, runs
// in a container without privileges, on a file system that it cannot write.
func TestImageRelays(t *testing.T) {
	d := openDist(t)
	p := newPodman(t)
	image := p.build(d, "amd64")

	var inspected []struct {
		Architecture string
		Config       struct {
			User            string
			Entrypoint, Cmd []string
			Env             []string
		}
		HealthCheck struct{ Test []string }
	}
	if err := json.Unmarshal([]byte(p.run("image", "inspect", image)), &inspected); err != nil {
		t.Fatal(err)
	}
	config := inspected[0].Config
	if config.User != "65532:65532" || !slices.Equal(config.Entrypoint, []string{"/usr/bin/relay"}) || !slices.Equal(config.Cmd, []string{"run"}) ||
		!slices.Contains(config.Env, "RELAY_CONFIG=/etc/outbox-relay/relay.yaml") {
		t.Errorf("it is configured as %+v", config)
	}
	if version := p.run(append(append([]string{"run", "--rm"}, hardened...), image, "version")...); !strings.Contains(version, d.Version) {
		t.Errorf("it is %s, want %s", version, d.Version)
	}

	stage := scenario.NewKafkaStage(t, nil)
	relay := stage.Relay(nil) // for a free address, and not started
	content, err := yaml.Marshal(relay.Config)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "relay.yaml")
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("outbox-relay-%d", os.Getpid())
	command := exec.Command("unshare", p.arguments(append(append([]string{
		"run", "--rm", "--name", name, "--volume", file + ":/etc/outbox-relay/relay.yaml:ro"}, hardened...), image)...)...)
	process, err := child.Start(command, filepath.Join(t.TempDir(), "relay.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer process.Kill()
	scenario.Await(t, 2*time.Minute, "the container to become ready", func() (bool, string) {
		if !process.Running() {
			t.Fatalf("it ended: %v\n%s", process.Err(), process.Tail(20))
		}
		return relay.Ready(), "it is not\n" + process.Tail(5)
	})
	key := "key"
	stage.AwaitRecord(stage.Insert(stage.Topic(), &key, "by a container").MessageID, time.Minute)
	// The same command as the image's HEALTHCHECK.
	p.run("exec", name, "/usr/bin/relay", "healthcheck")
	process.Signal(syscall.SIGTERM) // which podman hands on
	if !process.Wait(time.Minute) || process.Err() != nil {
		t.Errorf("it stopped with %v\n%s", process.Command.ProcessState, process.Tail(20))
	}
}

// No step of the Dockerfile runs anything, so that it builds for other
// processors too.
func TestImageOfAnotherArchitecture(t *testing.T) {
	d := openDist(t)
	p := newPodman(t)
	image := p.build(d, "arm64")
	if architecture := strings.TrimSpace(p.run("image", "inspect", "--format", "{{.Architecture}}", image)); architecture != "arm64" {
		t.Errorf("it is for %s", architecture)
	}
	p.run("create", "--pull=never", "--name", "exported", image)
	archive := filepath.Join(t.TempDir(), "image.tar")
	p.run("export", "--output", archive, "exported")
	listed := strings.Fields(output(t, "tar", "-tf", archive))
	for _, path := range []string{"usr/bin/relay", "usr/share/doc/outbox-relay/LICENSE", "usr/share/doc/outbox-relay/THIRD_PARTY_LICENSES"} {
		if !slices.Contains(listed, path) {
			t.Errorf("it does not have %s", path)
		}
	}
	dir := t.TempDir()
	output(t, "tar", "-C", dir, "-xf", archive, "usr/bin/relay")
	inside, err := os.ReadFile(filepath.Join(dir, "usr/bin/relay"))
	if err != nil {
		t.Fatal(err)
	}
	released, err := os.ReadFile(d.path(d.the("Binary", "linux", "arm64")))
	if err != nil {
		t.Fatal(err)
	}
	if string(inside) != string(released) {
		t.Error("its binary is not the released one")
	}
}
