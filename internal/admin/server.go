// Package admin is the relay's HTTP listener: /livez, /readyz, /metrics and, by
// option, profiles. Nothing of it changes anything.
package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"
)

// The paths that are answered.
const (
	LivePath    = "/livez"
	ReadyPath   = "/readyz"
	MetricsPath = "/metrics"
	ProfilePath = "/debug/pprof/"
)

// What a client may take of a connection. Profiles last as long as they are
// asked to, so the server as a whole bounds no answer.
const (
	headerTimeout = 5 * time.Second
	bodyTimeout   = 5 * time.Second // of a body that nobody reads
	writeTimeout  = 30 * time.Second
	idleTimeout   = time.Minute
	headerBytes   = 16 << 10
	closeTimeout  = 2 * time.Second
)

// Server answers for one relay. Its functions are called concurrently.
type Server struct {
	Config Config
	// Live returns what is wrong when the process should be started anew; nil
	// counts as a function that never does.
	Live func() error
	// Ready reports whether the relay's work has begun.
	Ready func() bool
	// Metrics answers /metrics, if there.
	Metrics http.Handler
	Logger  *slog.Logger
}

// Handler returns the routes.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+LivePath, func(w http.ResponseWriter, _ *http.Request) {
		if s.Live != nil {
			if err := s.Live(); err != nil {
				answer(w, http.StatusServiceUnavailable, err.Error()+"\n")
				return
			}
		}
		answer(w, http.StatusOK, "ok\n")
	})
	mux.HandleFunc("GET "+ReadyPath, func(w http.ResponseWriter, _ *http.Request) {
		if s.Ready() {
			answer(w, http.StatusOK, "ok\n")
			return
		}
		answer(w, http.StatusServiceUnavailable, "not ready: the database has not been reached yet, or the relay stops; its log says why\n")
	})
	if s.Metrics != nil {
		mux.Handle("GET "+MetricsPath, s.guarded(s.Metrics))
	}
	if s.Config.Pprof {
		mux.Handle("GET "+ProfilePath, s.guarded(http.HandlerFunc(pprof.Index)))
		mux.Handle("GET "+ProfilePath+"profile", s.guarded(http.HandlerFunc(pprof.Profile)))
		mux.Handle("GET "+ProfilePath+"symbol", s.guarded(http.HandlerFunc(pprof.Symbol)))
		mux.Handle("GET "+ProfilePath+"trace", s.guarded(http.HandlerFunc(pprof.Trace)))
	}
	return bounded(mux)
}

// bounded keeps clients from holding a connection: by a body that never comes,
// or by not reading the answer.
func bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		connection := http.NewResponseController(w)
		if r.ContentLength != 0 {
			_ = connection.SetReadDeadline(time.Now().Add(bodyTimeout)) // a recorder has none
		}
		if !strings.HasPrefix(r.URL.Path, ProfilePath) {
			_ = connection.SetWriteDeadline(time.Now().Add(writeTimeout))
		}
		next.ServeHTTP(w, r)
	})
}

// guarded asks for the token, if there is one.
func (s *Server) guarded(next http.Handler) http.Handler {
	if s.Config.Token == "" {
		return next
	}
	want := sha256.Sum256([]byte(s.Config.Token)) // equal lengths, so that the comparison tells none
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		got := sha256.Sum256([]byte(strings.TrimSpace(token)))
		if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			answer(w, http.StatusUnauthorized, "unauthorized\n")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) // a client that went away needs no answer
}

// Open binds the address, so that one that is taken is known at start, with TLS
// where that is configured.
func (c Config) Open(ctx context.Context) (net.Listener, error) {
	certificate, err := c.TLS.certificate()
	if err != nil {
		return nil, fmt.Errorf("http.tls: %w", err)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("http.listen: %w; choose another address, or \"\" to turn the listener off", err)
	}
	if certificate != nil {
		listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{*certificate}, MinVersion: tls.VersionTLS12})
	}
	return listener, nil
}

// Serve answers until ctx ends, and closes the listener.
func (s *Server) Serve(ctx context.Context, listener net.Listener) {
	server := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: headerBytes,
		ErrorLog: slog.NewLogLogger(s.Logger.Handler(), slog.LevelDebug), // what clients do wrong
	}
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
