package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/outboxrelay/relay/e2e/servers"
)

// Direction is one of a connection's two.
type Direction int

// The directions.
const (
	ToServer Direction = iota
	ToClient
)

func (d Direction) other() Direction { return 1 - d }

// dialLimit bounds connecting to the server.
const dialLimit = 10 * time.Second

// Proxy forwards the connections to its address to a server. Its methods may be
// called concurrently.
type Proxy struct {
	address string
	release func()
	group   sync.WaitGroup

	mu       sync.Mutex
	target   string
	listener net.Listener
	closed   bool
	links    map[*link]struct{}
	shots    []*Shot
	state    state
	// changed is closed, and replaced, when the state changes.
	changed chan struct{}
	// accepted counts connections, swallowed the bytes that were lost.
	accepted  int
	swallowed [2]int64
}

// state is what happens to bytes.
type state struct {
	stalled   bool
	swallowed [2]bool
	delay     time.Duration
	// rate is in bytes per second and direction of a connection; 0 is without a
	// bound.
	rate int
}

// Listen takes an address on 127.0.0.1 and listens there. Connections are closed
// until Forward names the server.
func Listen() (*Proxy, error) {
	address, release, err := servers.TakeAddress()
	if err != nil {
		return nil, err
	}
	p := &Proxy{address: address, release: release, links: map[*link]struct{}{}, changed: make(chan struct{})}
	if err := p.Pass(); err != nil {
		release()
		return nil, err
	}
	return p, nil
}

// New listens on a new address and forwards to the server's, host:port.
func New(target string) (*Proxy, error) {
	p, err := Listen()
	if err != nil {
		return nil, err
	}
	p.Forward(target)
	return p, nil
}

// Address is where the proxy listens, host:port.
func (p *Proxy) Address() string { return p.address }

// Forward names the server, host:port, for the connections to come.
func (p *Proxy) Forward(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Pass ends every fault: bytes move, nothing is slow, no shot is armed and the
// proxy listens. Connections that lost bytes are cut.
func (p *Proxy) Pass() error {
	p.become(state{})
	p.mu.Lock()
	p.shots = nil
	var broken []*link
	for l := range p.links {
		if l.lost {
			broken = append(broken, l)
		}
	}
	listening, closed := p.listener != nil, p.closed
	p.mu.Unlock()
	for _, l := range broken {
		l.cut()
	}
	if closed {
		return errors.New("the proxy is closed")
	}
	if listening {
		return nil
	}
	listener, err := net.Listen("tcp", p.address)
	if err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	p.mu.Lock()
	p.listener = listener
	p.mu.Unlock()
	p.group.Go(func() { p.accept(listener) })
	return nil
}

// Stall keeps all bytes where they are until Pass. New connections are accepted,
// as a frozen host's kernel does.
func (p *Proxy) Stall() { p.become(state{stalled: true}) }

// Freeze swallows all bytes until Pass, and never answers new connections. Not
// even the end of a connection gets through.
func (p *Proxy) Freeze() { p.become(state{swallowed: [2]bool{true, true}}) }

// Swallow swallows all bytes in one direction until Pass.
func (p *Proxy) Swallow(direction Direction) {
	var s state
	s.swallowed[direction] = true
	p.become(s)
}

// HalfOpen swallows, from now on, all bytes of the connections that there are,
// and returns how many that is. New ones pass, so that a client which finds out
// by itself can go on; nobody tells it.
func (p *Proxy) HalfOpen() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.lost, l.deaf = true, [2]bool{true, true}
	}
	return len(p.links)
}

// Delay makes every byte arrive so much later, until Pass.
func (p *Proxy) Delay(delay time.Duration) { p.become(state{delay: delay}) }

// Bandwidth lets so many bytes per second pass in each direction of each
// connection, until Pass.
func (p *Proxy) Bandwidth(bytesPerSecond int) { p.become(state{rate: bytesPerSecond}) }

// Refuse cuts all connections and stops listening, until Pass.
func (p *Proxy) Refuse() {
	p.become(state{})
	p.mu.Lock()
	listener := p.listener
	p.listener = nil
	p.mu.Unlock()
	if listener != nil {
		_ = listener.Close()
	}
	p.Cut()
}

// Cut resets all connections, and returns how many there were.
func (p *Proxy) Cut() int {
	p.mu.Lock()
	links := make([]*link, 0, len(p.links))
	for l := range p.links {
		links = append(links, l)
	}
	p.mu.Unlock()
	for _, l := range links {
		l.cut()
	}
	return len(links)
}

// Accepted is how many connections were accepted so far.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Open is how many connections there are.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Swallowed is how many bytes in the direction were lost so far.
func (p *Proxy) Swallowed(direction Direction) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.swallowed[direction]
}

// Close cuts everything and waits until the proxy's goroutines have ended.
func (p *Proxy) Close() error {
	p.mu.Lock()
	first := !p.closed
	p.closed = true
	p.mu.Unlock()
	if !first {
		return nil
	}
	p.Refuse()
	p.group.Wait()
	p.release()
	return nil
}

func (p *Proxy) become(s state) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = s
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return // closed, by Refuse or Close
		}
		l := &link{proxy: p, client: conn.(*net.TCPConn), done: make(chan struct{})}
		p.mu.Lock()
		p.accepted++
		current := p.listener == listener
		if current {
			p.links[l] = struct{}{}
		}
		p.mu.Unlock()
		if !current {
			l.cut()
			continue
		}
		p.group.Go(l.run)
	}
}

// connect dials the server when the state lets the client's bytes move. It
// returns nil when they are swallowed, or the connection is cut before that.
func (p *Proxy) connect(l *link) (*net.TCPConn, error) {
	for {
		p.mu.Lock()
		target, s, changed := p.target, p.state, p.changed
		if s.swallowed[ToServer] {
			l.lost = true
		}
		p.mu.Unlock()
		switch {
		case s.swallowed[ToServer]:
			return nil, nil
		case target == "":
			return nil, errors.New("the proxy has no server yet")
		case !s.stalled:
			ctx, cancel := context.WithTimeout(context.Background(), dialLimit)
			defer cancel()
			var dialer net.Dialer
			conn, err := dialer.DialContext(ctx, "tcp", target)
			if err != nil {
				return nil, err
			}
			return conn.(*net.TCPConn), nil
		}
		select {
		case <-changed:
		case <-l.done:
			return nil, net.ErrClosed
		}
	}
}
