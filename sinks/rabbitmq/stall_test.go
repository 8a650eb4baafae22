package rabbitmq_test

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

// gate is a proxy before the broker that can stop passing bytes, as a broken
// network does.
type gate struct {
	listener net.Listener
	target   string
	running  sync.WaitGroup

	mu     sync.Mutex
	closed chan struct{} // closed while bytes pass
	conns  []net.Conn
}

func newGate(t *testing.T, target string) *gate {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{listener: listener, target: target, closed: make(chan struct{})}
	close(g.closed)
	g.running.Go(g.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		g.cut()
		g.open()
		g.running.Wait()
	})
	return g
}

func (g *gate) accept() {
	for {
		client, err := g.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", g.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		g.mu.Lock()
		g.conns = append(g.conns, client, server)
		g.mu.Unlock()
		g.running.Go(func() { g.pass(client, server) })
		g.running.Go(func() { g.pass(server, client) })
	}
}

func (g *gate) pass(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		<-g.passing()
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (g *gate) passing() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = make(chan struct{})
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.closed:
	default:
		close(g.closed)
	}
}

func (g *gate) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, conn := range g.conns {
		_ = conn.Close()
	}
	g.conns = nil
}

// TestStalledNetwork stops every byte in the middle of a call with more
// payload than all buffers hold: Publish, Ping, Verify and Close return in
// time, and the publisher recovers.
func TestStalledNetwork(t *testing.T) {
	orders(t, func(t *testing.T, b broker) {
		address, err := url.Parse(b.url)
		if err != nil {
			t.Fatal(err)
		}
		queue := b.queue(t, nil)
		g := newGate(t, address.Host)
		address.Host = g.listener.Addr().String()
		through := b
		through.url = address.String()
		publisher := through.publisher(t, nil)
		closed := false
		defer func() {
			if !closed {
				_ = publisher.Close()
			}
		}()
		if err := publisher.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		g.close()
		large := make([]byte, 200_000)
		var messages []sinks.Message
		for i := range int64(200) {
			m := message("", queue, fmt.Sprint(i%50), i)
			m.Payload = large
			messages = append(messages, m)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		results := publisher.Publish(ctx, messages)
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("Publish took %s", took)
		}
		failure{sinks.ScopeSink, false, "timeout", "in time"}.check(t, "stalled", results[0])
		failure{sinks.ScopeSink, false, "timeout", "in time"}.check(t, "Ping", publisher.Ping(ctx))
		failure{sinks.ScopeSink, false, "timeout", "in time"}.check(t, "Verify", publisher.Verify(ctx, sinks.Destination{Name: queue}))

		// The network comes back with new connections only.
		g.cut()
		g.open()
		deadline := time.Now().Add(30 * time.Second)
		for pending := messages; len(pending) > 0; {
			var failed []sinks.Message
			results := publish(t, publisher, pending)
			for i, err := range results {
				if err != nil {
					failed = append(failed, pending[i])
				}
			}
			if len(failed) > 0 && time.Now().After(deadline) {
				t.Fatalf("%d messages still fail: %v", len(failed), results)
			}
			pending = failed
		}
		seen := map[int64]bool{}
		highest := map[string]int64{}
		for _, d := range b.read(t, queue, len(messages), 30*time.Second) {
			sequence, key := sequenceOf(d), d.Headers["message-key"].(string)
			if !seen[sequence] && sequence < highest[key] {
				t.Errorf("key %s: %d came after %d", key, sequence, highest[key])
			}
			seen[sequence] = true
			highest[key] = max(highest[key], sequence)
		}
		if len(seen) != len(messages) {
			t.Errorf("%d different messages, want %d", len(seen), len(messages))
		}

		g.close()
		began = time.Now()
		if err := publisher.Close(); err != nil {
			t.Error(err)
		}
		closed = true
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("Close took %s", took)
		}
	})
}
