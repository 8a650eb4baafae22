package rabbitmq_test

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// TestFailedConnectionsLeaveNothing tries to connect many times, as a relay
// does throughout an outage.
func TestFailedConnectionsLeaveNothing(t *testing.T) {
	b := newBroker(t)
	nowhere := b
	nowhere.url = strings.TrimRight(b.url, "/") + "/" + unique("missing")
	for name, publisher := range map[string]*rabbitmq.Publisher{
		"unknown virtual host":  nowhere.open(t, nil),
		"TLS to the plain port": b.open(t, func(c *rabbitmq.Config, _ *sinks.Envelope) { c.TLS.Enabled = true }),
	} {
		t.Run(name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			for range 20 {
				if err := publisher.Ping(t.Context()); err == nil {
					t.Fatal("it worked")
				}
			}
			for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
				}
			}
		})
	}
}
