package proxy

import (
	"io"
	"net"
	"sync"
	"time"
)

const (
	// chunkSize is how much is read at a time.
	chunkSize = 16 << 10
	// queued is how many chunks of a direction wait in the proxy at most; after
	// that its peer has to wait.
	queued = 64
	// ticks is how many times a second bytes move when the rate is bounded.
	ticks = 20
)

// link is one client's connection and the one to the server.
type link struct {
	proxy  *Proxy
	client *net.TCPConn
	server *net.TCPConn

	once sync.Once
	// done is closed when the link is cut or has ended.
	done chan struct{}

	// The proxy's lock guards the rest.

	// burst counts the bytes in each direction since the last in the other.
	burst [2]int
	// lost: some bytes were swallowed, so that what comes later makes no sense.
	lost bool
	// deaf directions have lost bytes.
	deaf [2]bool
}

// chunk is what was read at a time.
type chunk struct {
	bytes []byte
	at    time.Time
}

// run forwards until both directions have ended.
func (l *link) run() {
	defer l.end()
	server, err := l.proxy.connect(l)
	if err != nil {
		l.cut()
		return
	}
	if server == nil {
		_, _ = io.Copy(counter{l}, l.client)
		<-l.done
		return
	}
	l.proxy.mu.Lock()
	l.server = server
	l.proxy.mu.Unlock()
	select {
	case <-l.done: // cut while it was dialled
		_ = server.Close()
		return
	default:
	}
	var both sync.WaitGroup
	both.Go(func() { l.pump(ToServer, l.client, server) })
	both.Go(func() { l.pump(ToClient, server, l.client) })
	both.Wait()
}

// counter counts what is swallowed.
type counter struct{ *link }

func (c counter) Write(p []byte) (int, error) {
	c.proxy.mu.Lock()
	defer c.proxy.mu.Unlock()
	c.proxy.swallowed[ToServer] += int64(len(p))
	return len(p), nil
}

// pump moves one direction until it ends or the link is cut.
func (l *link) pump(d Direction, from, to *net.TCPConn) {
	chunks := make(chan chunk, queued)
	var reader sync.WaitGroup
	reader.Go(func() { l.read(from, chunks) })
	defer reader.Wait()
	for {
		select {
		case <-l.done:
			return
		case c, more := <-chunks:
			if !more {
				if l.admitEnd(d) {
					_ = to.CloseWrite()
				} else {
					<-l.done // the other side is not to know
				}
				return
			}
			if !l.move(d, to, c) {
				l.cut()
				return
			}
		}
	}
}

// read hands on what comes until that ends. An error is as good as an end: the
// other direction finds out by itself.
func (l *link) read(from *net.TCPConn, chunks chan<- chunk) {
	defer close(chunks)
	for {
		buffer := make([]byte, chunkSize)
		n, err := from.Read(buffer)
		if n > 0 {
			select {
			case chunks <- chunk{buffer[:n], time.Now()}:
			case <-l.done:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// move delivers a chunk and reports whether the link lives.
func (l *link) move(d Direction, to *net.TCPConn, c chunk) bool {
	for len(c.bytes) > 0 {
		s := l.admittance(c.at)
		bytes := c.bytes
		if s.rate > 0 {
			bytes = bytes[:min(len(bytes), max(1, s.rate/ticks))]
		}
		pass, shot := l.admit(d, len(bytes))
		if pass > 0 {
			if _, err := to.Write(bytes[:pass]); err != nil {
				return false
			}
		}
		if shot != nil {
			l.cut()
			close(shot.fired)
			return false
		}
		c.bytes = c.bytes[len(bytes):]
		if s.rate > 0 {
			l.pause(time.Second / ticks)
		}
	}
	return true
}

// admittance waits until what was read at that time may move, and returns the
// state in which it does.
func (l *link) admittance(at time.Time) state {
	for {
		l.proxy.mu.Lock()
		s, changed := l.proxy.state, l.proxy.changed
		l.proxy.mu.Unlock()
		wait := time.Until(at.Add(s.delay))
		if !s.stalled && wait <= 0 {
			return s
		}
		var due <-chan time.Time
		if !s.stalled {
			due = time.After(wait)
		}
		select {
		case <-due:
		case <-changed:
		case <-l.done:
			return s
		}
	}
}

// admit returns how many of the next n bytes pass, and the shot that cuts the
// link after them, if there is one.
func (l *link) admit(d Direction, n int) (pass int, shot *Shot) {
	p := l.proxy
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state.swallowed[d] || l.deaf[d] {
		l.lost, l.deaf[d] = true, true
		p.swallowed[d] += int64(n)
		return 0, nil
	}
	pass, shot = p.strike(l, d, n)
	p.swallowed[d] += int64(n - pass)
	l.burst[d] += pass
	l.burst[d.other()] = 0
	return pass, shot
}

// admitEnd waits until the end of a direction may be told, and reports whether
// it may.
func (l *link) admitEnd(d Direction) bool {
	l.admittance(time.Now())
	p := l.proxy
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state.swallowed[d] || l.deaf[d] {
		l.lost = true
		return false
	}
	return true
}

func (l *link) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-l.done:
	}
}

// cut resets both connections.
func (l *link) cut() {
	l.once.Do(func() {
		l.proxy.mu.Lock()
		server := l.server
		l.proxy.mu.Unlock()
		close(l.done)
		for _, conn := range []*net.TCPConn{l.client, server} {
			if conn != nil {
				_ = conn.SetLinger(0) // a reset, and not an orderly end
				_ = conn.Close()
			}
		}
	})
}

// end closes what is left and forgets the link.
func (l *link) end() {
	l.once.Do(func() {
		close(l.done)
		_ = l.client.Close()
		if l.server != nil {
			_ = l.server.Close()
		}
	})
	l.proxy.mu.Lock()
	defer l.proxy.mu.Unlock()
	delete(l.proxy.links, l)
}
