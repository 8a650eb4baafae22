package packages_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// machine is a throw-away copy of this machine's files, on which root may
// install what it likes: what is written there is kept in memory, and is gone
// with the process that holds the mounts. Processes and network are shared.
type machine struct {
	t *testing.T
	// pid is the holder's, top the folder that is the root there.
	pid, top string
}

// holder mounts the machine below the folder $1 in a namespace of its own, and
// stays until its standard input ends.
const holder = `set -e
mount -t tmpfs machine "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay machine -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount --rbind /dev "$1/root/dev"
mount -t proc proc "$1/root/proc"
mount -t tmpfs -o mode=1777 machine "$1/root/tmp"
mount -t tmpfs machine "$1/root/run"
echo mounted
read -r _ || true`

// newMachine needs root and Linux's namespaces and overlays.
func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a throw-away copy of this machine takes root")
	}
	needs(t, "unshare", "nsenter", "setpriv", "chroot")
	dir := t.TempDir()
	command := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", holder, "sh", dir)
	command.Stderr = os.Stderr
	input, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	told, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = input.Close()
		_ = command.Wait()
	})
	if line, err := bufio.NewReader(told).ReadString('\n'); err != nil {
		t.Fatalf("mounting a throw-away copy of this machine: %v %s", err, line)
	}
	return &machine{t, strconv.Itoa(command.Process.Pid), filepath.Join(dir, "root")}
}

// command is one that runs there; its process is the program's from its start.
func (m *machine) command(arguments ...string) *exec.Cmd {
	return exec.CommandContext(m.t.Context(), "nsenter", append([]string{
		"--mount=/proc/" + m.pid + "/ns/mnt", "--wd=/", "chroot", m.top, "env", "--chdir=/",
	}, arguments...)...)
}

// run runs a command there, which has to succeed.
func (m *machine) run(arguments ...string) string {
	m.t.Helper()
	command := m.command(arguments...)
	return output(m.t, command.Path, command.Args[1:]...)
}

// try runs a command there.
func (m *machine) try(arguments ...string) (string, int) {
	m.t.Helper()
	command := m.command(arguments...)
	return try(m.t, command.Path, command.Args[1:]...)
}

// reach is the path, from outside, of one that is there.
func (m *machine) reach(path string) string {
	return filepath.Join("/proc", m.pid, "root", m.top, path)
}

// put copies a file of this machine's there.
func (m *machine) put(from, path string) {
	m.t.Helper()
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(m.reach(path), content, 0o644)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// edit changes a file there as an editor does that keeps owner and mode.
func (m *machine) edit(path, content string) {
	m.t.Helper()
	file, err := os.OpenFile(m.reach(path), os.O_WRONLY|os.O_TRUNC, 0)
	if err == nil {
		_, err = file.WriteString(content)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// read returns a file there.
func (m *machine) read(path string) string {
	m.t.Helper()
	content, err := os.ReadFile(m.reach(path))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(content)
}

func (m *machine) exists(path string) bool {
	_, err := os.Lstat(m.reach(path))
	return err == nil
}

// service is the command of a unit there, with its user, its files of variables
// and without any privilege, as systemd starts it.
func (m *machine) service(unit string, environment ...string) *exec.Cmd {
	m.t.Helper()
	settings := map[string]string{}
	for line := range strings.Lines(m.read("/usr/lib/systemd/system/" + unit)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			settings[name] = value
		}
	}
	environment = append(environment, strings.Fields(settings["Environment"])...)
	for line := range strings.Lines(m.read(strings.TrimPrefix(settings["EnvironmentFile"], "-"))) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			environment = append(environment, line)
		}
	}
	arguments := append([]string{
		"setpriv", "--reuid", settings["User"], "--regid", settings["Group"], "--init-groups", "--inh-caps=-all", "--bounding-set=-all",
		"--no-new-privs", "env", "--ignore-environment",
	}, environment...)
	command := m.command(append(arguments, strings.Fields(settings["ExecStart"])...)...)
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return command
}
