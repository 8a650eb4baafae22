package rabbitmq

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// writeTimeout is how long the broker may take no byte at all before the
	// connection counts as stalled. Without it a stalled socket would hang
	// every publisher for good, heartbeats included.
	writeTimeout = 10 * time.Second
	// farewell is what Close grants to the last frames.
	farewell = 250 * time.Millisecond
	// streamRoom is how many bytes may wait for the socket before callers hold
	// back their next message.
	streamRoom = 1 << 20
)

// pacedConn bounds every write to the socket, below TLS: a TLS connection is
// broken for good once a write of its own has timed out.
type pacedConn struct {
	net.Conn
	timeout time.Duration
	// patient reports that the broker said it would not read for now, so that
	// silence is no stall.
	patient func() bool
}

// Write goes on for as long as bytes move or the broker asked for patience.
func (c *pacedConn) Write(p []byte) (int, error) {
	written := 0
	for {
		if err := c.Conn.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(p[written:])
		written += n
		switch {
		case err == nil:
			return written, nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return written, err
		case n == 0 && !c.patient():
			return written, fmt.Errorf("the broker took no byte for %s: %w", c.timeout, err)
		}
	}
}

// stream is the connection that amqp091 reads and writes. Write only copies
// into a buffer, so no caller ever blocks in it; the stream's goroutine writes
// what has gathered, which makes one system call of many frames (amqp091
// flushes after each message). Callers keep the buffer small by asking hasRoom.
type stream struct {
	net.Conn          // what frames go through: the socket, or TLS on it
	socket   net.Conn // ends a blocked read or write when closed
	changed  *waiters

	mu       sync.Mutex
	pending  []byte
	closing  bool
	writeErr error
	readErr  error
	greeting byte // the first byte that the broker sent

	size atomic.Int64  // bytes that wait for the socket
	wake chan struct{} // capacity 1
	done chan struct{} // closed when the goroutine has ended
}

func newStream(conn, socket net.Conn, changed *waiters) *stream {
	s := &stream{
		Conn: conn, socket: socket, changed: changed,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	go s.run()
	return s
}

// run writes until the stream is closed or a write fails; Close waits for it.
func (s *stream) run() {
	defer close(s.done)
	defer s.changed.wake()
	defer func() { _ = s.socket.Close() }()
	var spare []byte
	for range s.wake {
		s.mu.Lock()
		batch, closing := s.pending, s.closing
		s.pending = spare[:0]
		s.mu.Unlock()
		if len(batch) > 0 {
			_, err := s.Conn.Write(batch)
			if err != nil {
				s.mu.Lock()
				s.writeErr = err
				s.mu.Unlock()
				return
			}
			full := s.size.Add(-int64(len(batch)))+int64(len(batch)) >= streamRoom
			if full {
				s.changed.wake()
			}
		}
		// One giant message must not pin its buffer for ever.
		if cap(batch) > 4*streamRoom {
			batch = nil
		}
		spare = batch
		if closing {
			return
		}
	}
}

// hasRoom reports whether another message should be written now.
func (s *stream) hasRoom() bool { return s.size.Load() < streamRoom }

// Write copies p; it fails only once the connection is lost or closed.
func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	if s.writeErr != nil || s.closing {
		defer s.mu.Unlock()
		if s.writeErr != nil {
			return 0, s.writeErr
		}
		return 0, net.ErrClosed
	}
	s.pending = append(s.pending, p...)
	s.size.Add(int64(len(p)))
	s.mu.Unlock()
	ring(s.wake)
	return len(p), nil
}

// Read remembers what explains a failed handshake.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if err == nil && s.greeting != 0 {
		return n, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > 0 && s.greeting == 0 {
		s.greeting = p[0]
	}
	if err != nil && s.readErr == nil {
		s.readErr = err
	}
	return n, err
}

// cause returns what ended the stream: the write error if there was one, for
// then the read error is only its consequence.
func (s *stream) cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writeErr != nil {
		return s.writeErr
	}
	return s.readErr
}

// firstByte returns the first byte that the broker sent, 0 when it sent none.
func (s *stream) firstByte() byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.greeting
}

// Close lets the last frames out, briefly, and closes the socket.
func (s *stream) Close() error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	ring(s.wake)
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	select {
	case <-s.done:
		return nil
	case <-timer.C:
	}
	err := s.socket.Close()
	<-s.done
	return err
}
