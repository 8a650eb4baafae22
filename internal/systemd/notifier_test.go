package systemd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/outboxrelay/relay/internal/delivery"
)

// fakeLoop is as healthy as a test says.
type fakeLoop struct {
	ready atomic.Bool
	hangs atomic.Bool
}

func (l *fakeLoop) Ready() bool { return l.ready.Load() }

func (l *fakeLoop) Live() error {
	if l.hangs.Load() {
		return errors.New("no turn for an hour")
	}
	return nil
}

// manager is a service manager's end of the socket.
type manager struct {
	t      *testing.T
	socket *net.UnixConn
}

func listenAsManager(t *testing.T, address string) manager {
	t.Helper()
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	return manager{t, socket}
}

// next returns the next datagram, or nothing when none comes within limit.
func (m manager) next(limit time.Duration) string {
	m.t.Helper()
	if err := m.socket.SetReadDeadline(time.Now().Add(limit)); err != nil {
		m.t.Fatal(err)
	}
	buffer := make([]byte, 4096)
	n, err := m.socket.Read(buffer)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ""
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return string(buffer[:n])
}

// expect reads until the datagram comes; only the watchdog's may come before it.
func (m manager) expect(want string) {
	m.t.Helper()
	for {
		got := m.next(30 * time.Second)
		if got == want {
			return
		}
		if got != "WATCHDOG=1" {
			m.t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func variables(values map[string]string) func(string) string {
	return func(name string) string { return values[name] }
}

func TestServiceManagerIsToldEachChange(t *testing.T) {
	for _, kind := range []string{"file", "abstract"} {
		t.Run(kind, func(t *testing.T) {
			address := filepath.Join(t.TempDir(), "notify")
			if kind == "abstract" {
				address = "@outbox-relay-test-" + strconv.Itoa(os.Getpid())
			}
			m := listenAsManager(t, address)
			n := New(variables(map[string]string{"NOTIFY_SOCKET": address}), 45*time.Second, slog.New(slog.NewTextHandler(t.Output(), nil)))
			observer := n.Observe(nobody{})
			var loop fakeLoop
			stopping, stop := context.WithCancel(t.Context())
			ctx, end := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				n.Run(ctx, stopping.Done(), &loop)
			}()

			m.expect("STATUS=Waiting for the database")
			observer.DatabaseUp(false)
			loop.ready.Store(true)
			observer.DatabaseUp(true)
			m.expect("READY=1\nSTATUS=Relaying")
			observer.DatabaseUp(true) // no news
			observer.SinkUp("main", true)
			observer.SinkUp("main", false)
			m.expect("STATUS=Relaying, but no answer from main")
			observer.SinkUp("audit", false)
			m.expect("STATUS=Relaying, but no answer from audit, main")
			observer.DatabaseUp(false)
			m.expect("STATUS=Waiting for the database to come back")
			observer.SinkUp("audit", true)
			observer.SinkUp("main", true)
			observer.DatabaseUp(true)
			m.expect("STATUS=Relaying")
			loop.ready.Store(false) // as the loop does when it stops
			stop()
			m.expect("STOPPING=1\nEXTEND_TIMEOUT_USEC=75000000\nSTATUS=Stopping: finishing what is in flight")
			observer.SinkUp("main", false) // of no interest any more
			end()
			<-ended
			if got := m.next(time.Millisecond); got != "" {
				t.Errorf("at the end: %q", got)
			}
		})
	}
}

func TestWatchdogIsFedOnlyWhileTheLoopLives(t *testing.T) {
	address := filepath.Join(t.TempDir(), "notify")
	m := listenAsManager(t, address)
	n := New(variables(map[string]string{
		"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "40000", "WATCHDOG_PID": strconv.Itoa(os.Getpid()),
	}), time.Second, slog.New(slog.NewTextHandler(t.Output(), nil)))
	observer := n.Observe(nobody{})
	var loop fakeLoop
	loop.ready.Store(true)
	observer.DatabaseUp(true)
	ended := make(chan struct{})
	ctx, end := context.WithCancel(t.Context())
	go func() {
		defer close(ended)
		n.Run(ctx, nil, &loop)
	}()
	defer func() {
		end()
		<-ended
	}()

	m.expect("READY=1\nSTATUS=Relaying")
	for range 5 {
		m.expect("WATCHDOG=1")
	}
	loop.hangs.Store(true)
	m.expect("STATUS=Hangs: no turn for an hour")
	if got := m.next(500 * time.Millisecond); got != "" { // 25 turns
		t.Errorf("while the loop hangs: %q", got)
	}
	loop.hangs.Store(false)
	m.expect("STATUS=Relaying")
	m.expect("WATCHDOG=1")
}

func TestWithoutAServiceManager(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	n := New(variables(map[string]string{"WATCHDOG_USEC": "1000000"}), time.Second, logger)
	if n != nil {
		t.Fatalf("a notifier without NOTIFY_SOCKET: %+v", n)
	}
	if observer := n.Observe(nobody{}); observer != (nobody{}) {
		t.Errorf("the observer is %T", observer)
	}
	n.Run(t.Context(), nil, &fakeLoop{}) // returns at once
	if log.Len() > 0 {
		t.Errorf("it logged %s", &log)
	}
}

func TestEnvironmentOfServiceManagers(t *testing.T) {
	for _, test := range []struct {
		socket, microseconds, pid string
		manager                   bool
		watchdog                  time.Duration
		warning                   string
	}{
		{socket: "/run/systemd/notify", manager: true},
		{socket: "@abstract", microseconds: "30000000", manager: true, watchdog: 30 * time.Second},
		{socket: "/run/systemd/notify", microseconds: "30000000", pid: "1", manager: true},
		{socket: "/run/systemd/notify", microseconds: "soon", manager: true, warning: `WATCHDOG_USEC \"soon\" is no number`},
		{socket: "/run/systemd/notify", microseconds: "0", manager: true, warning: `WATCHDOG_USEC \"0\" is no number`},
		{socket: "/run/systemd/notify", microseconds: "9223372036854775807", manager: true, warning: "is no number"},
		{socket: "vsock:2:1234", warning: "names no Unix socket"},
	} {
		var log bytes.Buffer
		n := New(variables(map[string]string{
			"NOTIFY_SOCKET": test.socket, "WATCHDOG_USEC": test.microseconds, "WATCHDOG_PID": test.pid,
		}), time.Second, slog.New(slog.NewTextHandler(&log, nil)))
		if (n != nil) != test.manager || n != nil && n.watchdog != test.watchdog {
			t.Errorf("%+v: %+v", test, n)
		}
		if (log.Len() > 0) != (test.warning != "") || !strings.Contains(log.String(), test.warning) {
			t.Errorf("%+v: logged %q", test, &log)
		}
	}
}

// A manager that is away is complained about once, and told again when it is back.
func TestServiceManagerIsAwayForAWhile(t *testing.T) {
	address := filepath.Join(t.TempDir(), "notify")
	var log bytes.Buffer
	n := New(variables(map[string]string{"NOTIFY_SOCKET": address}), time.Second, slog.New(slog.NewTextHandler(&log, nil)))
	n.send("STATUS=one")
	n.send("STATUS=two")
	if lines := strings.Count(log.String(), "\n"); lines != 1 || !strings.Contains(log.String(), "cannot be told") {
		t.Errorf("logged %d lines: %s", lines, &log)
	}
	m := listenAsManager(t, address)
	n.send("STATUS=three")
	m.expect("STATUS=three")
}

// nobody is an observer that does nothing.
type nobody struct{ delivery.Observer }

func (nobody) DatabaseUp(bool)     {}
func (nobody) SinkUp(string, bool) {}
