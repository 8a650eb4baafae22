package chart_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/child"
	"github.com/outboxrelay/relay/e2e/scenario"
)

const (
	// entrypoint is where the image has the relay, and what it runs; searchPath
	// is its PATH, nonRoot its user and group.
	entrypoint = "/usr/bin/relay"
	searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	nonRoot    = 65532
	// endLimit bounds a command that is expected to end.
	endLimit = 2 * time.Minute
)

// sandbox is a container as the kubelet would make it, with a folder in place
// of the image: a root of its own that has the relay and the volumes at the
// paths, with the owners and the modes that the pod gives them. What runs in it
// has no other files, no other environment and no other user than the container
// would have. It shares this machine's network, as the servers are there.
type sandbox struct {
	t         testing.TB
	n         *namespace
	pod       pod
	container container
	root      string
	user      user
}

// user is who the container's process is.
type user struct{ uid, gid, group int }

// image is what the sandboxes have of the image.
var image imageBuild

type imageBuild struct {
	once sync.Once
	dir  string
	err  error
}

// relay builds the relay as the image has it, unless it did: it needs no
// library.
func (i *imageBuild) relay(t testing.TB) string {
	t.Helper()
	i.once.Do(func() {
		if i.dir, i.err = os.MkdirTemp("", "outbox-relay-image-"); i.err != nil {
			return
		}
		build := exec.Command("go", "build", "-o", i.dir, "./cmd/relay")
		build.Dir = "../.."
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if output, err := build.CombinedOutput(); err != nil {
			i.err = fmt.Errorf("build the relay: %w\n%s", err, output)
		}
	})
	if i.err != nil {
		t.Fatal(i.err)
	}
	return filepath.Join(i.dir, "relay")
}

func (i *imageBuild) remove() { _ = os.RemoveAll(i.dir) }

// newSandbox makes the container's files. A Secret or a ConfigMap that the API
// does not have fails the test, unless it is optional, as it would keep the
// kubelet from starting the container.
func newSandbox(n *namespace, p pod, c container) *sandbox {
	n.t.Helper()
	// Not the test's own folder, which nobody else may enter.
	root, err := os.MkdirTemp("", "outbox-relay-container-")
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = os.RemoveAll(root) })
	s := &sandbox{t: n.t, n: n, pod: p, container: c, root: root, user: containerUser(n.t, p, c)}
	binary := image.relay(n.t)
	s.folder("/", 0o755)
	s.folder(filepath.Dir(entrypoint), 0o755)
	if err := os.Link(binary, filepath.Join(root, entrypoint)); err != nil {
		content, err := os.ReadFile(binary)
		if err != nil {
			n.t.Fatal(err)
		}
		s.file(entrypoint, content, 0o755, 0)
	}
	s.file("/etc/hosts", []byte("127.0.0.1 localhost\n"), 0o644, 0)
	if !c.SecurityContext.ReadOnlyRootFilesystem {
		s.folder("/tmp", 0o777)
	}
	for _, m := range c.VolumeMounts {
		s.mount(m)
	}
	return s
}

// containerUser is who the container's and the pod's security contexts say.
func containerUser(t testing.TB, p pod, c container) user {
	t.Helper()
	first := func(values ...*int) int {
		for _, value := range values {
			if value != nil {
				return *value
			}
		}
		return nonRoot
	}
	u := user{
		uid: first(c.SecurityContext.RunAsUser, p.Spec.SecurityContext.RunAsUser),
		gid: first(c.SecurityContext.RunAsGroup, p.Spec.SecurityContext.RunAsGroup),
	}
	if group := p.Spec.SecurityContext.FSGroup; group != nil {
		u.group = *group
	}
	return u
}

func (s *sandbox) folder(path string, mode os.FileMode) {
	s.t.Helper()
	full := filepath.Join(s.root, path)
	if err := os.MkdirAll(full, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chmod(full, mode); err != nil {
		s.t.Fatal(err)
	}
}

// file writes a file of root's and of the group's.
func (s *sandbox) file(path string, content []byte, mode os.FileMode, group int) {
	s.t.Helper()
	full := filepath.Join(s.root, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(full, content, 0o600); err != nil {
		s.t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(full, 0, group); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := os.Chmod(full, mode); err != nil {
		s.t.Fatal(err)
	}
}

// mount puts a volume's files where the container mounts it.
func (s *sandbox) mount(m mount) {
	s.t.Helper()
	i := slices.IndexFunc(s.pod.Spec.Volumes, func(v volume) bool { return v.Name == m.Name })
	if i < 0 {
		s.t.Fatalf("the pod has no volume %s, which container %s mounts", m.Name, s.container.Name)
	}
	v := s.pod.Spec.Volumes[i]
	var from files
	var data map[string]string
	switch {
	case v.EmptyDir != nil:
		s.folder(m.MountPath, 0o777)
		return
	case v.ConfigMap != nil:
		from, data = *v.ConfigMap, s.n.data("configmaps", v.ConfigMap.Name, v.ConfigMap.Optional)
	case v.Secret != nil:
		from, data = *v.Secret, s.n.data("secrets", v.Secret.SecretName, v.Secret.Optional)
	default:
		s.t.Fatalf("volume %s is of a kind that this test does not know", v.Name)
	}
	for path, content := range from.project(s.t, data) {
		mode := os.FileMode(from.DefaultMode)
		if s.user.group != 0 {
			// The kubelet gives the files of such volumes to the group.
			mode |= 0o440
		}
		switch m.SubPath {
		case "":
			s.file(filepath.Join(m.MountPath, path), []byte(content), mode, s.user.group)
		case path:
			s.file(m.MountPath, []byte(content), mode, s.user.group)
		}
	}
	if _, err := os.Stat(filepath.Join(s.root, m.MountPath)); err != nil {
		s.t.Fatalf("container %s mounts %s of volume %s, which is not there: %v", s.container.Name, m.SubPath, v.Name, err)
	}
}

// project names the files of a volume.
func (f files) project(t testing.TB, data map[string]string) map[string]string {
	t.Helper()
	if len(f.Items) == 0 {
		return data
	}
	projected := map[string]string{}
	for _, item := range f.Items {
		content, ok := data[item.Key]
		if !ok && !f.Optional {
			t.Fatalf("%s%s has no key %s, which a volume wants", f.Name, f.SecretName, item.Key)
		}
		projected[item.Path] = content
	}
	return projected
}

// data is what a ConfigMap or a Secret holds.
func (n *namespace) data(plural, name string, optional bool) map[string]string {
	n.t.Helper()
	var found struct{ Data map[string]string }
	err := n.kubernetes.Call(n.t.Context(), http.MethodGet, n.path("v1", plural)+"/"+name, nil, &found)
	if err != nil && !optional {
		n.t.Fatal(err)
	}
	if plural == "secrets" {
		for key, encoded := range found.Data {
			decoded, err := base64.StdEncoding.DecodeString(encoded)
			if err != nil {
				n.t.Fatal(err)
			}
			found.Data[key] = string(decoded)
		}
	}
	return found.Data
}

// environment is what the container's process gets, and no other variable.
func (s *sandbox) environment() map[string]string {
	s.t.Helper()
	variables := map[string]string{"PATH": searchPath, "HOME": "/", "HOSTNAME": s.pod.Metadata.Name}
	for _, source := range s.container.EnvFrom {
		if from := source.ConfigMapRef; from != nil {
			for key, value := range s.n.data("configmaps", from.Name, from.Optional) {
				variables[source.Prefix+key] = value
			}
		}
		if from := source.SecretRef; from != nil {
			for key, value := range s.n.data("secrets", from.Name, from.Optional) {
				variables[source.Prefix+key] = value
			}
		}
	}
	for _, v := range s.container.Env {
		if value, ok := s.value(v, variables); ok {
			variables[v.Name] = value
		}
	}
	return variables
}

// value resolves a variable.
func (s *sandbox) value(v variable, others map[string]string) (string, bool) {
	s.t.Helper()
	from := v.ValueFrom
	if from == nil {
		return expand(v.Value, others), true
	}
	plural, ref := "secrets", from.SecretKeyRef
	if from.ConfigMapKeyRef != nil {
		plural, ref = "configmaps", from.ConfigMapKeyRef
	}
	switch {
	case ref != nil:
		value, ok := s.n.data(plural, ref.Name, ref.Optional)[ref.Key]
		if !ok && !ref.Optional {
			s.t.Fatalf("%s of container %s: %s %s has no key %s", v.Name, s.container.Name, plural, ref.Name, ref.Key)
		}
		return value, ok
	case from.ResourceFieldRef != nil && from.ResourceFieldRef.Resource == "limits.memory":
		if name := from.ResourceFieldRef.ContainerName; name != "" && name != s.container.Name {
			s.t.Fatalf("%s of container %s is about container %s", v.Name, s.container.Name, name)
		}
		return memoryBytes(s.container.Resources.Limits["memory"]), true
	case from.FieldRef != nil && from.FieldRef.FieldPath == "metadata.name":
		return s.pod.Metadata.Name, true
	case from.FieldRef != nil && from.FieldRef.FieldPath == "metadata.namespace":
		return s.pod.Metadata.Namespace, true
	}
	s.t.Fatalf("%s of container %s has a source that this test does not know", v.Name, s.container.Name)
	return "", false
}

var variablePattern = regexp.MustCompile(`\$\([A-Za-z_][A-Za-z0-9_.-]*\)`)

// expand replaces $(NAME) as the kubelet does; what is not known stays.
func expand(text string, variables map[string]string) string {
	return variablePattern.ReplaceAllStringFunc(text, func(reference string) string {
		if value, ok := variables[reference[2:len(reference)-1]]; ok {
			return value
		}
		return reference
	})
}

// command is the container's process, or another one in the container.
func (s *sandbox) command(args ...string) *exec.Cmd {
	s.t.Helper()
	variables := s.environment()
	if len(args) == 0 {
		args = s.container.Command
		if len(args) == 0 {
			args = []string{entrypoint}
		}
		args = slices.Clone(append(slices.Clone(args), s.container.Args...))
		for i := range args {
			args[i] = expand(args[i], variables)
		}
	}
	program := args[0]
	if !strings.Contains(program, "/") {
		// The image has no other.
		program = filepath.Join(filepath.Dir(entrypoint), program)
	}
	command := &exec.Cmd{Path: program, Args: args, Dir: "/"}
	if s.container.WorkingDir != "" {
		command.Dir = s.container.WorkingDir
	}
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		command.Env = append(command.Env, name+"="+variables[name])
	}
	command.SysProcAttr = &syscall.SysProcAttr{Chroot: s.root}
	if os.Geteuid() == 0 {
		command.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(s.user.uid), Gid: uint32(s.user.gid), Groups: []uint32{uint32(s.user.group)}}
	} else {
		// In a user namespace of its own everybody may change the root. The
		// files are this user's, who has the container's id there.
		command.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		command.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: s.user.uid, HostID: os.Getuid(), Size: 1}}
		command.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: s.user.gid, HostID: os.Getgid(), Size: 1}}
	}
	return command
}

// run runs the container's command, or another one in the container, to its end.
func (s *sandbox) run(args ...string) result {
	s.t.Helper()
	log := filepath.Join(s.t.TempDir(), "output")
	p, err := child.Start(s.command(args...), log)
	if err != nil {
		s.t.Fatal(err)
	}
	if !p.Wait(endLimit) {
		p.Kill()
		s.t.Fatalf("container %s does not end; its log ends with:\n%s", s.container.Name, p.Tail(20))
	}
	output, err := os.ReadFile(log)
	if err != nil {
		s.t.Fatal(err)
	}
	// What the kubelet has as the container's log: both.
	return result{stdout: string(output), code: p.Command.ProcessState.ExitCode()}
}

// start runs the container's command until the test's end, and waits until it
// is ready, by the probes that the container has.
func (s *sandbox) start() *child.Process {
	s.t.Helper()
	log := filepath.Join(s.t.TempDir(), "output")
	p, err := child.Start(s.command(), log)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		p.Kill()
		if s.t.Failed() {
			s.t.Logf("the log of container %s ends with:\n%s", s.container.Name, p.Tail(40))
		}
	})
	probes := map[string]*probe{
		"startup": s.container.StartupProbe, "liveness": s.container.LivenessProbe, "readiness": s.container.ReadinessProbe,
	}
	for name, probe := range probes {
		if probe == nil {
			s.t.Errorf("container %s has no %s probe", s.container.Name, name)
			continue
		}
		scenario.Await(s.t, settleLimit, "the "+name+" probe", func() (bool, string) {
			if !p.Running() {
				s.t.Fatalf("container %s ended (%v); its log ends with:\n%s", s.container.Name, p.Err(), p.Tail(20))
			}
			err := s.probe(probe)
			return err == nil, fmt.Sprint(err)
		})
	}
	return p
}

// probe does what the kubelet does.
func (s *sandbox) probe(p *probe) error {
	if p.Exec != nil {
		if r := s.run(p.Exec.Command...); r.code != 0 {
			return fmt.Errorf("%v: %s", p.Exec.Command, r)
		}
		return nil
	}
	if p.HTTPGet == nil {
		return fmt.Errorf("a probe of a kind that this test does not know: %+v", p)
	}
	response, err := s.fetch(strings.ToLower(p.HTTPGet.Scheme), string(p.HTTPGet.Port), p.HTTPGet.Path, "")
	if err != nil {
		return err
	}
	if response < 200 || response >= 400 {
		return fmt.Errorf("%s answers %d", p.HTTPGet.Path, response)
	}
	return nil
}

// fetch asks one of the container's ports and returns the answer's status.
func (s *sandbox) fetch(scheme, port, path, token string) (int, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	url := fmt.Sprintf("%s://127.0.0.1:%s%s", scheme, s.container.port(jsonText(port)), path)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	// The kubelet does not check certificates either.
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}} //nolint:gosec // as said
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	return response.StatusCode, response.Body.Close()
}
