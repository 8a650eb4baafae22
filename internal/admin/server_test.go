package admin_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/outboxrelay/relay/internal/admin"
)

func TestHandler(t *testing.T) {
	for _, test := range []struct {
		method, path string
		ready        bool
		status       int
		body         string
	}{
		{"GET", "/livez", false, 200, "ok"},
		{"GET", "/readyz", true, 200, "ok"},
		{"HEAD", "/readyz", true, 200, ""},
		{"GET", "/readyz", false, 503, "the database has not been reached"},
		{"POST", "/readyz", true, 405, ""},
		{"GET", "/", true, 404, ""},
		{"GET", "/readyz/x", true, 404, ""},
	} {
		server := &admin.Server{Ready: func() bool { return test.ready }}
		recorder := httptest.NewRecorder()
		server.Handler().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), test.method, test.path, nil))
		if recorder.Code != test.status || !strings.Contains(recorder.Body.String(), test.body) {
			t.Errorf("%s %s, ready %t: %d %q, want %d %q", test.method, test.path, test.ready, recorder.Code, recorder.Body, test.status, test.body)
		}
	}
}

func TestServeUntilItsContextEnds(t *testing.T) {
	listener, err := (admin.Config{Listen: "127.0.0.1:0"}).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ready atomic.Bool
	server := &admin.Server{Ready: ready.Load, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		server.Serve(ctx, listener)
	}()
	url := "http://" + listener.Addr().String() + admin.ReadyPath
	expect := func(status int) {
		t.Helper()
		response, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		_, _ = io.Copy(io.Discard, response.Body)
		if response.StatusCode != status {
			t.Errorf("%s: %d, want %d", url, response.StatusCode, status)
		}
	}
	expect(http.StatusServiceUnavailable)
	ready.Store(true)
	expect(http.StatusOK)

	// The address is taken, which is said at start.
	if _, err := (admin.Config{Listen: listener.Addr().String()}).Open(t.Context()); err == nil || !strings.Contains(err.Error(), "http.listen: ") || !strings.Contains(err.Error(), "choose another address") {
		t.Errorf("a second listener: %v", err)
	}

	stop()
	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on after its context ended")
	}
	if response, err := http.Get(url); err == nil {
		_ = response.Body.Close()
		t.Error("it still answers")
	}
}
