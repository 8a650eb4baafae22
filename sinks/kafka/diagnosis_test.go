package kafka

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/sinks"
)

// listener takes connections and hangs up without a word.
func listener(t *testing.T) (address string) {
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
			_, _ = conn.Read(make([]byte, 1)) // the rest unread: a reset, as a broker does that understands nothing
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-stopped
	})
	return l.Addr().String()
}

func TestHangUpBeforeAnythingWorked(t *testing.T) {
	for _, test := range []struct {
		name string
		tls  bool
		want string
	}{
		{"silent", false, "is TLS misconfigured? If the listener wants TLS, set tls.enabled: true"},
		{"silent to TLS", true, "is TLS misconfigured? If the listener does not use TLS, set tls.enabled: false"},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := Defaults()
			config.Brokers, config.TLS = []string{listener(t)}, sinks.TLS{Enabled: test.tls}
			err := open(t, config).Ping(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

// A connection that breaks when it has worked before is no sign of wrong
// settings.
func TestHangUpAfterItWorked(t *testing.T) {
	p := open(t, testConfig(t))
	if err := p.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone := listener(t)
	dial := p.cluster.transport.Dial
	p.cluster.transport.CloseIdleConnections()
	p.cluster.transport.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) { return dial(ctx, network, gone) }
	err := p.Ping(t.Context())
	if err == nil || strings.Contains(err.Error(), "misconfigured") || strings.Contains(err.Error(), "tls.enabled") || strings.Contains(err.Error(), "sasl") {
		t.Errorf("error %v, want one without a hint at the settings", err)
	}
}

func TestWhatAListenerSaysFirst(t *testing.T) {
	for _, test := range []struct {
		heard int32
		tls   bool
		sasl  string
		want  string
	}{
		{heardTLS, false, "", "answered in TLS: is TLS misconfigured? Set tls.enabled: true"},
		{heardTLS, false, "plain", "answered in TLS: is TLS misconfigured? Set tls.enabled: true"},
		{heardTLS, true, "", "if it wants SASL, set sasl"},
		{heardTLS, true, "plain", "of a listener with SASL"},
		{heardKafka, false, "", "if it wants SASL, set sasl"},
		{heardKafka, false, "plain", "of a listener with SASL"},
	} {
		c := &cluster{config: Config{TLS: sinks.TLS{Enabled: test.tls}, SASL: SASL{Mechanism: test.sasl}}, dialed: newConnections()}
		c.dialed.heard.Store(test.heard)
		if got := c.hangUpRemedy(); !strings.Contains(got, test.want) {
			t.Errorf("heard %d, TLS %t, SASL %q: %q, want %q", test.heard, test.tls, test.sasl, got, test.want)
		}
		c.proven.Store(true)
		if got := c.hangUpRemedy(); got != "" {
			t.Errorf("heard %d, and it worked before: %q", test.heard, got)
		}
	}
}
