package admin_test

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/outboxrelay/relay/internal/admin"
)

// pipes is a listener whose connections have the time of the test.
type pipes struct {
	accepted chan net.Conn
	closed   chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.accepted:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// A client that dawdles loses its connection, and with it what it costs.
func TestSlowClients(t *testing.T) {
	big := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat("x", 1<<20)) })
	for _, test := range []struct {
		name string
		send string
		// read: it reads the first answer.
		read  bool
		limit time.Duration
	}{
		{"says nothing", "", false, 10 * time.Second},
		{"half a header", "GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ", false, 10 * time.Second},
		{"a body that never comes", "POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n", true, 10 * time.Second},
		{"an idle connection", "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", true, 2 * time.Minute},
		{"an answer that is not read", "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", false, time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, stop := connect(t, &admin.Server{Ready: func() bool { return true }, Metrics: big, Logger: slog.New(slog.DiscardHandler)})
				began := time.Now()
				if _, err := io.WriteString(client, test.send); err != nil {
					t.Fatal(err)
				}
				reader := bufio.NewReader(client)
				if test.read {
					response, err := http.ReadResponse(reader, nil)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := io.Copy(io.Discard, response.Body); err != nil {
						t.Fatal(err)
					}
					_ = response.Body.Close()
				} else {
					time.Sleep(test.limit) // and reads nothing
				}
				if _, err := io.Copy(io.Discard, reader); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took > test.limit {
					t.Errorf("the connection lasted %v, want %v at most", took, test.limit)
				}
				stop()
			})
		})
	}
}

// connect serves one connection until stop, which waits for the server's end.
func connect(t *testing.T, server *admin.Server) (client net.Conn, stop func()) {
	t.Helper()
	listener := &pipes{accepted: make(chan net.Conn), closed: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		server.Serve(ctx, listener)
	}()
	client, served := net.Pipe()
	listener.accepted <- served
	return client, func() {
		cancel()
		<-stopped
	}
}

// Profiles last as long as they were asked to.
func TestLongProfileIsNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, stop := connect(t, &admin.Server{Ready: func() bool { return true }, Config: admin.Config{Pprof: true}, Logger: slog.New(slog.DiscardHandler)})
		if _, err := io.WriteString(client, "GET /debug/pprof/goroutine?seconds=60 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(client), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusOK || len(body) == 0 {
			t.Errorf("%s, %d bytes, %v", response.Status, len(body), err)
		}
		stop()
	})
}
