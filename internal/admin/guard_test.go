package admin_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/internal/admin"
)

func TestTokenGuardsWhatTellsMore(t *testing.T) {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics") })
	for _, test := range []struct {
		token, path, authorization string
		status                     int
	}{
		{"", "/metrics", "", 200},
		{"", "/debug/pprof/", "", 200},
		{"s3cret", "/livez", "", 200},
		{"s3cret", "/readyz", "", 200},
		{"s3cret", "/metrics", "", 401},
		{"s3cret", "/metrics", "Bearer wrong", 401},
		{"s3cret", "/metrics", "Basic s3cret", 401},
		{"s3cret", "/metrics", "Bearer s3cret", 200},
		{"s3cret", "/metrics", "bearer s3cret", 200},
		{"s3cret", "/debug/pprof/", "", 401},
		{"s3cret", "/debug/pprof/heap", "", 401},
		{"s3cret", "/debug/pprof/symbol", "Bearer s3cret", 200},
	} {
		server := &admin.Server{Ready: func() bool { return true }, Metrics: metrics, Config: admin.Config{Pprof: true, Token: test.token}}
		recorder := httptest.NewRecorder()
		request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, test.path, nil)
		if test.authorization != "" {
			request.Header.Set("Authorization", test.authorization)
		}
		server.Handler().ServeHTTP(recorder, request)
		if recorder.Code != test.status {
			t.Errorf("token %q: GET %s with %q: %d, want %d", test.token, test.path, test.authorization, recorder.Code, test.status)
		}
		if test.status == 401 && (recorder.Body.String() != "unauthorized\n" || recorder.Header().Get("WWW-Authenticate") != "Bearer") {
			t.Errorf("the answer tells more than that: %v %s", recorder.Header(), recorder.Body)
		}
	}
}

func TestWhatIsNotTurnedOnIsNotThere(t *testing.T) {
	server := &admin.Server{Ready: func() bool { return true }}
	for _, path := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/heap"} {
		recorder := httptest.NewRecorder()
		server.Handler().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		if recorder.Code != http.StatusNotFound {
			t.Errorf("GET %s: %d", path, recorder.Code)
		}
	}
}

func TestLiveSaysWhatIsWrong(t *testing.T) {
	server := &admin.Server{Ready: func() bool { return true }, Live: func() error { return errors.New("no claim for 5m0s") }}
	recorder := httptest.NewRecorder()
	server.Handler().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/livez", nil))
	if recorder.Code != http.StatusServiceUnavailable || !strings.Contains(recorder.Body.String(), "no claim for 5m0s") {
		t.Errorf("%d %s", recorder.Code, recorder.Body)
	}
}

// Nothing can be changed over HTTP, with the token or without.
func TestNothingWrites(t *testing.T) {
	for _, token := range []string{"", "s3cret"} {
		server := &admin.Server{Ready: func() bool { return true }, Metrics: http.NotFoundHandler(), Config: admin.Config{Pprof: true, Token: token}}
		for _, path := range []string{"/livez", "/readyz", "/metrics", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/profile", "/debug/pprof/symbol", "/debug/pprof/trace"} {
			for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
				recorder := httptest.NewRecorder()
				request := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader("x"))
				request.Header.Set("Authorization", "Bearer s3cret")
				server.Handler().ServeHTTP(recorder, request)
				if recorder.Code != http.StatusMethodNotAllowed {
					t.Errorf("%s %s: %d", method, path, recorder.Code)
				}
			}
		}
	}
}

// The command line is no profile: nothing there may be secret, and nobody needs
// to see it.
func TestNoCommandLine(t *testing.T) {
	server := &admin.Server{Ready: func() bool { return true }, Config: admin.Config{Pprof: true}}
	recorder := httptest.NewRecorder()
	server.Handler().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/debug/pprof/cmdline", nil))
	if recorder.Code != http.StatusNotFound {
		t.Errorf("GET /debug/pprof/cmdline: %d %s", recorder.Code, recorder.Body)
	}
}
