package proxy_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/proxy"
)

const (
	// patience is how long what should happen may take.
	patience = 20 * time.Second
	// glimpse is how long we watch that nothing happens.
	glimpse = 100 * time.Millisecond
)

// server answers each request of a byte n and n bytes after it with as many, and
// remembers what it got.
type server struct {
	listener net.Listener
	requests chan []byte
}

func startServer(t *testing.T) *server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{listener, make(chan []byte, 100)}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go s.serve(conn)
		}
	}()
	return s
}

func (s *server) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	for {
		size := make([]byte, 1)
		if _, err := io.ReadFull(conn, size); err != nil {
			return
		}
		body := make([]byte, size[0])
		n, err := io.ReadFull(conn, body)
		s.requests <- body[:n]
		if err != nil {
			return
		}
		if _, err := conn.Write(body); err != nil {
			return
		}
	}
}

func (s *server) got(t *testing.T, n int) {
	t.Helper()
	select {
	case request := <-s.requests:
		if len(request) != n {
			t.Errorf("the server got %d bytes, want %d", len(request), n)
		}
	case <-time.After(patience):
		t.Fatal("the server got no request")
	}
}

func (s *server) gotNothing(t *testing.T) {
	t.Helper()
	select {
	case request := <-s.requests:
		t.Errorf("the server got %d bytes, want none", len(request))
	case <-time.After(glimpse):
	}
}

func start(t *testing.T) (*server, *proxy.Proxy) {
	t.Helper()
	s := startServer(t)
	p, err := proxy.New(s.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, p
}

type client struct {
	*testing.T
	net.Conn
}

func dial(t *testing.T, p *proxy.Proxy) client {
	t.Helper()
	conn, err := net.Dial("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return client{t, conn}
}

func (c client) request(n int) {
	c.Helper()
	if _, err := c.Write(append([]byte{byte(n)}, bytes.Repeat([]byte{'x'}, n)...)); err != nil {
		c.Fatal(err)
	}
}

// answer reads n bytes, waiting at most limit.
func (c client) answer(n int, limit time.Duration) error {
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	_, err := io.ReadFull(c.Conn, make([]byte, n))
	return err
}

func (c client) answered(n int) {
	c.Helper()
	if err := c.answer(n, patience); err != nil {
		c.Fatalf("no answer: %v", err)
	}
}

func (c client) silent() {
	c.Helper()
	var timeout net.Error
	if err := c.answer(1, glimpse); !errors.As(err, &timeout) || !timeout.Timeout() {
		c.Errorf("reading gives %v, want silence", err)
	}
}

func (c client) reset() {
	c.Helper()
	if err := c.answer(1, patience); !errors.Is(err, syscall.ECONNRESET) {
		c.Errorf("reading gives %v, want a reset", err)
	}
}

func pass(t *testing.T, p *proxy.Proxy) {
	t.Helper()
	if err := p.Pass(); err != nil {
		t.Fatal(err)
	}
}

func fired(t *testing.T, shot *proxy.Shot) {
	t.Helper()
	select {
	case <-shot.Fired():
	case <-time.After(patience):
		t.Fatal("the shot did not fire")
	}
}

func TestForward(t *testing.T) {
	s, p := start(t)
	a, b := dial(t, p), dial(t, p)
	for _, c := range []client{a, b, a} {
		c.request(200)
		s.got(t, 200)
		c.answered(200)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); p.Open() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are open, want the other one", p.Open())
		}
	}
	if p.Accepted() != 2 {
		t.Errorf("accepted %d connections, want 2", p.Accepted())
	}
}

func TestStallLosesNothing(t *testing.T) {
	s, p := start(t)
	c := dial(t, p)
	c.request(5)
	s.got(t, 5)
	c.answered(5)
	p.Stall()
	c.request(9)
	late := dial(t, p)
	late.request(7)
	s.gotNothing(t)
	c.silent()
	pass(t, p)
	c.answered(9)
	late.answered(7)
}

func TestFreezeLosesEverything(t *testing.T) {
	s, p := start(t)
	idle, c := dial(t, p), dial(t, p)
	for _, c := range []client{idle, c} {
		c.request(5)
		s.got(t, 5)
		c.answered(5)
	}
	p.Freeze()
	c.request(9)
	late := dial(t, p)
	late.request(7)
	s.gotNothing(t)
	c.silent()
	late.silent()
	for deadline := time.Now().Add(patience); p.Swallowed(proxy.ToServer) != 18; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("swallowed %d bytes, want 18", p.Swallowed(proxy.ToServer))
		}
	}
	pass(t, p)
	c.reset()
	late.reset()
	// Nothing was sent over this one meanwhile.
	idle.request(3)
	idle.answered(3)
}

func TestHalfOpen(t *testing.T) {
	s, p := start(t)
	c := dial(t, p)
	c.request(5)
	s.got(t, 5)
	c.answered(5)
	if n := p.HalfOpen(); n != 1 {
		t.Errorf("%d connections are half open, want 1", n)
	}
	c.request(9)
	s.gotNothing(t)
	c.silent()
	again := dial(t, p)
	again.request(7)
	again.answered(7)
	pass(t, p)
	c.reset()
}

func TestSwallowAnswers(t *testing.T) {
	s, p := start(t)
	c := dial(t, p)
	p.Swallow(proxy.ToClient)
	c.request(9)
	s.got(t, 9)
	c.silent()
	pass(t, p)
	c.reset()
}

func TestSwallowedEndsAreNotTold(t *testing.T) {
	s, p := start(t)
	c := dial(t, p)
	c.request(5)
	s.got(t, 5)
	c.answered(5)
	p.Freeze()
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.silent() // the server would close, and that be seen here
	pass(t, p)
	c.reset()
}

func TestCutInTheMiddleOfALargeRequest(t *testing.T) {
	s, p := start(t)
	small, large := dial(t, p), dial(t, p)
	shot := p.CutAfter(proxy.ToServer, 50)
	for range 10 { // more than 50 bytes in all, but each has its answer
		small.request(20)
		s.got(t, 20)
		small.answered(20)
	}
	if shot.HasFired() {
		t.Fatal("fired at small requests")
	}
	large.request(100)
	s.got(t, 49) // and the byte before them
	fired(t, shot)
	large.reset()
	small.request(100)
	s.got(t, 100)
	small.answered(100) // one shot, one connection
}

func TestCutInTheMiddleOfAnAnswer(t *testing.T) {
	s, p := start(t)
	c := dial(t, p)
	shot := p.CutAfter(proxy.ToClient, 50)
	c.request(100)
	s.got(t, 100)
	fired(t, shot)
	if p.Swallowed(proxy.ToClient) != 50 {
		t.Errorf("%d bytes of the answer were lost, want 50", p.Swallowed(proxy.ToClient))
	}
}

func TestDropAnswer(t *testing.T) {
	s, p := start(t)
	small, large := dial(t, p), dial(t, p)
	shot := p.DropAnswer(50)
	small.request(20)
	s.got(t, 20)
	small.answered(20)
	large.request(100)
	s.got(t, 100)
	fired(t, shot)
	large.reset()
	small.request(100)
	s.got(t, 100)
	small.answered(100)
}

func TestDisarm(t *testing.T) {
	s, p := start(t)
	c := dial(t, p)
	shot := p.CutAfter(proxy.ToServer, 50)
	if !p.Disarm(shot) {
		t.Error("an armed shot could not be disarmed")
	}
	c.request(100)
	s.got(t, 100)
	c.answered(100)
	if shot.HasFired() {
		t.Error("a disarmed shot fired")
	}
	shot = p.CutAfter(proxy.ToServer, 50)
	c.request(100)
	fired(t, shot)
	if p.Disarm(shot) {
		t.Error("a shot that had fired was disarmed")
	}
}

func TestRefuse(t *testing.T) {
	s, p := start(t)
	c := dial(t, p)
	c.request(5)
	s.got(t, 5)
	c.answered(5)
	p.Refuse()
	c.reset()
	if conn, err := net.Dial("tcp", p.Address()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialling gives %v, %v, want a refusal", conn, err)
	}
	pass(t, p)
	again := dial(t, p)
	again.request(5)
	again.answered(5)
}

func TestDelayAndBandwidth(t *testing.T) {
	s, p := start(t)
	c := dial(t, p)
	took := func(n int) time.Duration {
		began := time.Now()
		c.request(n)
		s.got(t, n)
		c.answered(n)
		return time.Since(began)
	}
	p.Delay(100 * time.Millisecond)
	if d := took(5); d < 200*time.Millisecond {
		t.Errorf("a request and its answer took %v with a delay of 100 ms each", d)
	}
	p.Bandwidth(1000)
	if d := took(250); d < 450*time.Millisecond {
		t.Errorf("501 bytes took %v at 1000 bytes per second", d)
	}
	pass(t, p)
	c.request(250)
	c.answered(250)
}

func TestWithoutAServer(t *testing.T) {
	p, err := proxy.Listen()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", p.Address()) // the reset may come that early
	if err == nil {
		client{t, conn}.reset()
		_ = conn.Close()
	} else if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("dialling gives %v, want a reset", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Pass(); err == nil {
		t.Error("a closed proxy passes")
	}
}
