package rabbitmq

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// TestPacedConn writes to an end that reads nothing.
func TestPacedConn(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	var patient atomic.Bool
	conn := &pacedConn{Conn: ours, timeout: 10 * time.Millisecond, patient: patient.Load}
	if _, err := conn.Write([]byte("stalled")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a stalled write: %v", err)
	}
	// While the broker asks for patience, a write outlives many timeouts.
	patient.Store(true)
	written := make(chan error, 1)
	go func() {
		_, err := conn.Write([]byte("patient"))
		written <- err
	}()
	select {
	case err := <-written:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	got := make([]byte, 7)
	if _, err := io.ReadFull(theirs, got); err != nil || string(got) != "patient" {
		t.Errorf("%q, %v", got, err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}

// TestStream writes more than the other end takes, and closes.
func TestStream(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	changed := new(waiters)
	s := newStream(ours, ours, changed)
	bell := make(chan struct{}, 1)
	chunk := bytes.Repeat([]byte("x"), streamRoom/2)
	for range 3 {
		if n, err := s.Write(chunk); n != len(chunk) || err != nil {
			t.Fatal(n, err)
		}
	}
	changed.add(bell)
	if s.hasRoom() {
		t.Error("there is room although nobody reads")
	}
	if _, err := io.CopyN(io.Discard, theirs, 3*int64(len(chunk))); err != nil {
		t.Fatal(err)
	}
	select {
	case <-bell:
	case <-time.After(10 * time.Second):
		t.Fatal("no wake when there is room again")
	}
	for deadline := time.Now().Add(10 * time.Second); !s.hasRoom(); {
		if time.Now().After(deadline) {
			t.Fatal("no room although everything was read")
		}
	}

	// Close lets the last bytes out, and does not wait for an end that takes
	// none.
	last := make(chan []byte, 1)
	go func() {
		all, _ := io.ReadAll(theirs)
		last <- all
	}()
	if _, err := s.Write([]byte("bye")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if got := <-last; string(got) != "bye" {
		t.Errorf("the last bytes: %q", got)
	}
	if _, err := s.Write([]byte("late")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write after Close: %v", err)
	}

	ours, theirs = net.Pipe()
	defer theirs.Close()
	s = newStream(ours, ours, changed)
	if _, err := s.Write([]byte("never read")); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_ = s.Close()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Close took %s", took)
	}
}
