package rabbitmq_test

import (
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// hangingUp takes connections and ends them without a word, by a reset or in
// order.
func hangingUp(t *testing.T, reset bool) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 64)) // the whole greeting
			if reset {
				_ = conn.(*net.TCPConn).SetLinger(0)
			}
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-stopped
	})
	return l.Addr().String()
}

// A reset is no sign of wrong settings; a listener that hangs up in order at
// each greeting may be.
func TestHangUpBeforeTheGreeting(t *testing.T) {
	for _, test := range []struct {
		name  string
		reset bool
		want  string
	}{
		{"reset", true, "the connection was reset before the broker answered"},
		{"closed", false, "does it expect TLS (amqps://)?"},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := rabbitmq.Defaults()
			config.URL = "amqp://guest:guest@" + hangingUp(t, test.reset) + "/"
			publisher, err := rabbitmq.New(config, sinks.Envelope{}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = publisher.Close() })
			err = publisher.Ping(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) || test.reset && strings.Contains(err.Error(), "TLS") {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}
