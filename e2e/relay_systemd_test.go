package e2e_test

import (
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/proxy"
	"github.com/outboxrelay/relay/e2e/scenario"
)

// serviceManager receives what services tell systemd.
type serviceManager struct {
	t      *testing.T
	socket *net.UnixConn
}

// newServiceManager listens on a path, or on an abstract address after @.
func newServiceManager(t *testing.T, address string) *serviceManager {
	t.Helper()
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	return &serviceManager{t, socket}
}

// next returns the next datagram, empty when none comes within limit.
func (m *serviceManager) next(limit time.Duration) string {
	m.t.Helper()
	if err := m.socket.SetReadDeadline(time.Now().Add(limit)); err != nil {
		m.t.Fatal(err)
	}
	buffer := make([]byte, 4096)
	n, err := m.socket.Read(buffer)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		m.t.Fatal(err)
	}
	return string(buffer[:n])
}

// await reads until a datagram has the line, which none of those before may
// contradict by the unwanted one.
func (m *serviceManager) await(line, unwanted string) {
	m.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		datagram := m.next(time.Until(deadline))
		if datagram == "" {
			m.t.Fatalf("the service manager is not told %q", line)
		}
		lines := strings.Split(datagram, "\n")
		for _, found := range lines {
			switch found {
			case line:
				return
			case unwanted:
				m.t.Fatalf("the service manager is told %q before %q", found, line)
			}
		}
	}
}

// drain reads until no datagram has come for quiet, at most so many.
func (m *serviceManager) drain(quiet time.Duration, most int) {
	m.t.Helper()
	for range most {
		if m.next(quiet) == "" {
			return
		}
	}
	m.t.Fatalf("%d more datagrams came", most)
}

// The relay as a service of Type=notify with a watchdog, from its start while
// the database is away to its end.
func TestServiceUnderSystemd(t *testing.T) {
	for _, address := range []string{"", "@outbox-relay-e2e-" + strconv.Itoa(os.Getpid())} {
		name := "abstract socket"
		if address == "" {
			name, address = "socket in a folder", filepath.Join(t.TempDir(), "notify")
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			manager := newServiceManager(t, address)
			stage := scenario.NewRabbitStage(t, nil)
			server, err := url.Parse(stage.Database.URL)
			try(t, err)
			way, err := proxy.Listen() // which leads nowhere yet
			try(t, err)
			t.Cleanup(func() { _ = way.Close() })
			relay := stage.Relay(scenario.Settings{"database.url": elsewhere(t, stage.Database.URL, way.Address())})
			relay.Environment = []string{"NOTIFY_SOCKET=" + address, "WATCHDOG_USEC=200000"}

			relay.Launch()
			manager.await("STATUS=Waiting for the database", "READY=1")
			manager.await("WATCHDOG=1", "READY=1") // it lives, and waits
			if relay.Ready() {
				t.Error("/readyz answers 200 without a database")
			}
			way.Forward(server.Host)
			manager.await("READY=1", "")
			if !relay.Ready() {
				t.Error("the service manager is told that the relay is ready, and /readyz does not answer 200")
			}
			manager.await("WATCHDOG=1", "READY=1")

			way.Refuse()
			way.Cut()
			manager.await("STATUS=Waiting for the database to come back", "READY=1")
			try(t, way.Pass())
			manager.await("STATUS=Relaying", "READY=1")

			// A process that does not run cannot feed the watchdog.
			relay.Freeze()
			manager.drain(2*time.Second, 100)
			relay.Thaw()
			manager.await("WATCHDOG=1", "READY=1")

			relay.Terminate()
			manager.await("STOPPING=1", "READY=1")
			if code, ended := relay.ExitCode(60 * time.Second); !ended || code != 0 {
				t.Errorf("exit code %d, ended %t", code, ended)
			}
			if strings.Contains(relay.Log(), "service manager") {
				t.Errorf("its log complains:\n%s", relay.Log())
			}
		})
	}
}
