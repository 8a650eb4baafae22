// Package admin is the relay's HTTP listener: /livez and /readyz.
package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// The paths that are answered.
const (
	LivePath  = "/livez"
	ReadyPath = "/readyz"
)

const (
	headerTimeout = 5 * time.Second
	closeTimeout  = 2 * time.Second
)

// Server answers /livez while the process runs, and /readyz according to Ready.
type Server struct {
	// Ready reports whether the relay's work has begun; it is called
	// concurrently.
	Ready  func() bool
	Logger *slog.Logger
}

// Handler returns the routes.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+LivePath, func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET "+ReadyPath, func(w http.ResponseWriter, _ *http.Request) {
		if s.Ready() {
			answer(w, http.StatusOK, "ok\n")
			return
		}
		answer(w, http.StatusServiceUnavailable, "not ready: the database has not been reached yet, or the relay stops; its log says why\n")
	})
	return mux
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) // a client that went away needs no answer
}

// Listen binds the address, so that one that is taken is known at start.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("http.listen: %w; choose another address, or \"\" to turn the listener off", err)
	}
	return listener, nil
}

// Serve answers until ctx ends, and closes the listener.
func (s *Server) Serve(ctx context.Context, listener net.Listener) {
	server := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: headerTimeout}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		_ = server.Shutdown(closing) // past the bound connections end with the process
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		s.Logger.Error("the HTTP listener failed", "address", listener.Addr().String(), "error", err)
		return
	}
	<-stopped
}
