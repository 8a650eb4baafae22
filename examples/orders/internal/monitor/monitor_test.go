package monitor

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

func TestServe(t *testing.T) {
	url := os.Getenv("RELAY_TEST_POSTGRES_URL")
	if url == "" {
		t.Skip("RELAY_TEST_POSTGRES_URL is not set")
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "answer"}, func() float64 { return 42 }))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, address, pool, registry) }()
	get := func(path string) (int, string) {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			response, err := http.Get("http://" + address + path)
			if err != nil {
				if time.Now().After(deadline) {
					t.Fatal(err)
				}
				continue
			}
			body, err := io.ReadAll(response.Body)
			_ = response.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			return response.StatusCode, string(body)
		}
	}
	if status, body := get("/metrics"); status != http.StatusOK || !strings.Contains(body, "answer 42") {
		t.Errorf("/metrics answers %d: %s", status, body)
	}
	if status, body := get("/healthz"); status != http.StatusOK {
		t.Errorf("/healthz answers %d: %s", status, body)
	}
	pool.Close()
	if status, _ := get("/healthz"); status != http.StatusServiceUnavailable {
		t.Errorf("/healthz answers %d without a database", status)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
