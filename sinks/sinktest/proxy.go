package sinktest

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy forwards connections to a broker as a network does that is slow, or breaks. The
// test's end closes it.
type Proxy struct {
	// Address is where it listens.
	Address string

	listener net.Listener
	target   string
	delay    time.Duration
	running  sync.WaitGroup

	mu     sync.Mutex
	passes chan struct{} // closed while bytes pass
	conns  map[net.Conn]struct{}
	closed bool
}

// NewProxy starts a proxy that forwards each byte after a delay, in both directions.
func NewProxy(t testing.TB, target string, delay time.Duration) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		Address: listener.Addr().String(), listener: listener, target: target, delay: delay,
		passes: make(chan struct{}), conns: map[net.Conn]struct{}{},
	}
	close(p.passes)
	p.running.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() { p.connect(client) })
	}
}

func (p *Proxy) connect(client net.Conn) {
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		_ = client.Close()
		return
	}
	p.mu.Lock()
	p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	if p.closed {
		_, _ = client.Close(), server.Close()
	}
	p.mu.Unlock()
	p.running.Go(func() { p.forward(client, server) })
	p.forward(server, client)
}

type chunk struct {
	bytes []byte
	at    time.Time
}

func (p *Proxy) forward(from, to net.Conn) {
	chunks := make(chan chunk, 1024)
	p.running.Go(func() {
		defer to.Close()
		for c := range chunks {
			time.Sleep(time.Until(c.at))
			<-p.passing()
			if _, err := to.Write(c.bytes); err != nil {
				_ = from.Close()
			}
		}
	})
	defer close(chunks)
	for {
		buffer := make([]byte, 32<<10)
		n, err := from.Read(buffer)
		if n > 0 {
			chunks <- chunk{buffer[:n], time.Now().Add(p.delay)}
		}
		if err != nil {
			return
		}
	}
}

func (p *Proxy) passing() chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.passes
}

// Hold lets no byte pass until Pass, as behind a frozen host.
func (p *Proxy) Hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.passes = make(chan struct{})
}

// Pass lets bytes pass again.
func (p *Proxy) Pass() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.passes:
	default:
		close(p.passes)
	}
}

// Cut breaks all connections; new ones pass.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		_ = conn.Close()
	}
	clear(p.conns)
}

func (p *Proxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Cut()
	p.Pass()
	p.running.Wait()
}
