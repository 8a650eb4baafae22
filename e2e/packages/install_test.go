package packages_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/child"
	"github.com/outboxrelay/relay/e2e/scenario"
)

// The deb from its installation to its purge: it makes the user, the installed
// service relays, an upgrade keeps what an operator wrote, and so does a
// removal that is no purge.
func TestDebIsInstalledAndRelays(t *testing.T) {
	d := openDist(t)
	needs(t, "dpkg")
	m := newMachine(t)
	m.put(d.linuxPackage(t, "deb", "amd64"), "/tmp/outbox-relay.deb")
	m.run("dpkg", "--install", "/tmp/outbox-relay.deb")
	installed(t, m, d)
	relays(t, m)

	// An upgrade whose own configuration is a new one.
	edited := m.read("/etc/outbox-relay/relay.yaml")
	m.run("sh", "-ec", `dpkg-deb --raw-extract /tmp/outbox-relay.deb /tmp/next
sed -i 's/^Version: .*/Version: 999.0.0/' /tmp/next/DEBIAN/control
echo '# of the next version' >> /tmp/next/etc/outbox-relay/relay.yaml
dpkg-deb --build /tmp/next /tmp/next.deb
DEBIAN_FRONTEND=noninteractive dpkg --install --force-confdef --force-confold /tmp/next.deb`)
	if version := m.run("dpkg-query", "--show", "--showformat", "${Version}", "outbox-relay"); version != "999.0.0" {
		t.Errorf("after the upgrade version %s is there", version)
	}
	if m.read("/etc/outbox-relay/relay.yaml") != edited {
		t.Error("the upgrade overwrote the configuration")
	}
	owners(t, m)

	m.run("dpkg", "--remove", "outbox-relay")
	if m.exists("/usr/bin/relay") {
		t.Error("the removal left the binary")
	}
	if m.read("/etc/outbox-relay/relay.yaml") != edited {
		t.Error("the removal took the configuration along")
	}
	m.run("dpkg", "--purge", "outbox-relay")
	if m.exists("/etc/outbox-relay") {
		t.Error("the purge left the configuration")
	}
	for _, database := range []string{"passwd", "group"} {
		if found, code := m.try("getent", database, "outbox-relay"); code == 0 {
			t.Errorf("the purge left %s: %s", database, found)
		}
	}
}

// The rpm makes the same of a machine, as far as one with Debian's files tells.
func TestRPMIsInstalledAndRelays(t *testing.T) {
	d := openDist(t)
	needs(t, "rpm")
	m := newMachine(t)
	m.put(d.linuxPackage(t, "rpm", "amd64"), "/tmp/outbox-relay.rpm")
	m.run("rpm", "--initdb")
	// What it depends on is there under other names.
	m.run("rpm", "--install", "--force-debian", "--nodeps", "/tmp/outbox-relay.rpm")
	installed(t, m, d)
	relays(t, m)
	edited := m.read("/etc/outbox-relay/relay.yaml")
	m.run("rpm", "--upgrade", "--force", "--force-debian", "--nodeps", "/tmp/outbox-relay.rpm")
	if m.read("/etc/outbox-relay/relay.yaml") != edited {
		t.Error("the upgrade overwrote the configuration")
	}
	owners(t, m)
	m.run("rpm", "--erase", "--force-debian", "outbox-relay")
	if m.exists("/usr/bin/relay") {
		t.Error("the removal left the binary")
	}
	if m.read("/etc/outbox-relay/relay.yaml.rpmsave") != edited {
		t.Error("the removal took the configuration along")
	}
}

// installed looks at a machine after the first installation.
func installed(t *testing.T, m *machine, d *dist) {
	t.Helper()
	user := strings.Split(strings.TrimSpace(m.run("getent", "passwd", "outbox-relay")), ":")
	if user[5] != "/nonexistent" || !strings.HasSuffix(user[6], "nologin") {
		t.Errorf("the user can log in: %q", user)
	}
	owners(t, m)
	if _, code := m.try("setpriv", "--reuid", "nobody", "--clear-groups", "cat", "/etc/outbox-relay/relay.env"); code == 0 {
		t.Error("anybody reads the passwords of relay.env")
	}
	if version := m.run("relay", "version"); !strings.Contains(version, d.Version) {
		t.Errorf("installed is %s, want %s", version, d.Version)
	}
	// The configuration as it comes is a valid one, and names what to do.
	if text, code := m.try("relay", "config", "print", "--config", "/etc/outbox-relay/relay.yaml"); code != 0 {
		t.Errorf("the configuration as it comes: exit code %d\n%s", code, text)
	}
	for _, unit := range []string{"outbox-relay.service", "outbox-relay@orders.service"} {
		if text := m.run("systemd-analyze", "verify", "--man=no", unit); strings.Contains(text, "outbox-relay") {
			t.Errorf("systemd finds fault with %s:\n%s", unit, text)
		}
	}
}

// owners looks at who reads what is in /etc.
func owners(t *testing.T, m *machine) {
	t.Helper()
	for path, want := range map[string]string{
		"/etc/outbox-relay": "750 root outbox-relay", "/etc/outbox-relay/relay.yaml": "640 root outbox-relay", "/etc/outbox-relay/relay.env": "640 root outbox-relay",
	} {
		if got := strings.TrimSpace(m.run("stat", "--format", "%a %U %G", path)); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}

// relays lets the installed service relay a row, and stops it.
func relays(t *testing.T, m *machine) {
	t.Helper()
	stage := scenario.NewKafkaStage(t, nil) // with the released binary
	brokers := stage.Config["sinks"].(scenario.Config)["main"].(scenario.Config)["kafka"].(scenario.Config)["brokers"].([]string)
	m.edit("/etc/outbox-relay/relay.env", "# by an operator\nDATABASE_URL="+stage.Database.URL+"\nKAFKA_BROKER="+brokers[0]+"\n")
	m.edit("/etc/outbox-relay/relay.yaml", `# by an operator
database: {url: "${DATABASE_URL}"}
sinks: {main: {kafka: {brokers: ["${KAFKA_BROKER}"]}}}
http: {listen: ""}
`)
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: fmt.Sprintf("@outbox-relay-packages-%d-%s", os.Getpid(), t.Name()), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	log := filepath.Join(t.TempDir(), "relay.log")
	process, err := child.Start(m.service("outbox-relay.service", "NOTIFY_SOCKET="+socket.LocalAddr().String()), log)
	if err != nil {
		t.Fatal(err)
	}
	defer process.Kill()
	told := func(line string) {
		t.Helper()
		if err := socket.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		for buffer := make([]byte, 4096); ; {
			n, err := socket.Read(buffer)
			if err != nil {
				t.Fatalf("systemd is not told %s: %v\n%s", line, err, process.Tail(20))
			}
			if strings.HasPrefix(string(buffer[:n]), line) {
				return
			}
		}
	}
	told("READY=1")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", process.Command.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(status), "CapBnd:\t0000000000000000") || strings.Contains(string(status), "Uid:\t0\t") {
		t.Errorf("it runs with privileges:\n%s", status)
	}
	key := "key"
	stage.AwaitRecord(stage.Insert(stage.Topic(), &key, "by the installed service").MessageID, time.Minute)
	process.Signal(syscall.SIGTERM)
	told("STOPPING=1")
	if !process.Wait(time.Minute) || process.Err() != nil {
		t.Errorf("it stopped with %v\n%s", process.Command.ProcessState, process.Tail(20))
	}

	// The watchdog ends it by a signal, after which systemd starts it again, and
	// not with exit code 2, after which it does not.
	process, err = child.Start(m.service("outbox-relay.service", "NOTIFY_SOCKET="+socket.LocalAddr().String()), log)
	if err != nil {
		t.Fatal(err)
	}
	defer process.Kill()
	told("READY=1")
	process.Signal(syscall.SIGABRT)
	if !process.Wait(time.Minute) {
		t.Fatal("SIGABRT does not end it")
	}
	if status, ok := process.Command.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGABRT {
		t.Errorf("SIGABRT ended it with %v", process.Command.ProcessState)
	}
	if dump, err := os.ReadFile(log); err != nil || !strings.Contains(string(dump), "delivery.(*Loop).Run") {
		t.Errorf("its log has no dump of the loop: %v", err)
	}

	// A wrong configuration ends it with the code that systemd does not start
	// it again after.
	right := m.read("/etc/outbox-relay/relay.yaml")
	m.edit("/etc/outbox-relay/relay.yaml", right+"outbocks: {}\n")
	refused, err := child.Start(m.service("outbox-relay.service"), log)
	if err != nil {
		t.Fatal(err)
	}
	if !refused.Wait(time.Minute) || refused.Command.ProcessState.ExitCode() != 2 {
		refused.Kill()
		t.Errorf("with a wrong configuration it ended with %v, want exit code 2", refused.Command.ProcessState)
	}
	m.edit("/etc/outbox-relay/relay.yaml", right)
}
