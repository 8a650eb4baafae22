package rabbitmq_test

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// gate is a proxy before a server that can end connections and refuse new
// ones.
type gate struct {
	listener net.Listener
	target   string
	running  sync.WaitGroup

	mu      sync.Mutex
	refused bool
	conns   map[net.Conn]bool
}

// newGate returns a gate and the URL of its target through it.
func newGate(t testing.TB, target string) (*gate, string) {
	t.Helper()
	through, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{listener: listener, target: through.Host, conns: make(map[net.Conn]bool)}
	through.Host = listener.Addr().String()
	g.running.Go(g.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		g.cut(true)
		g.running.Wait()
	})
	return g, through.String()
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
		if g.refused {
			_, _ = client.Close(), server.Close()
		} else {
			g.conns[client], g.conns[server] = true, true
			g.running.Go(func() { g.pass(client, server) })
			g.running.Go(func() { g.pass(server, client) })
		}
		g.mu.Unlock()
	}
}

func (g *gate) pass(from, to net.Conn) {
	_, _ = io.Copy(to, from)
	_, _ = from.Close(), to.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.conns, from)
}

// cut ends all connections, and refuses new ones until open.
func (g *gate) cut(refuse bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused = refuse
	for conn := range g.conns {
		_ = conn.Close()
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused = false
}
