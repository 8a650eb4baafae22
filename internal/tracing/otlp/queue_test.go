package otlp

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestImpossibleQueues: sizes that no queue can have, and a delay that is none,
// are named and ignored, and spans are exported all the same.
func TestImpossibleQueues(t *testing.T) {
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer collector.Close()
	for _, value := range []string{"-1", "0", "1000000000000000000"} {
		for _, name := range []string{"OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_SCHEDULE_DELAY"} {
			t.Run(name+"="+value, func(t *testing.T) {
				t.Setenv(name, value)
				p, j := startWith(t, collector.Listener.Addr().String(), name)
				p.make(3)
				p.Stop()
				if !strings.Contains(j.String(), "variable="+name) || j.count("a variable of OpenTelemetry is wrong") != 1 {
					t.Errorf("not the variable alone is said to be wrong:\n%s", j)
				}
				if j.count("not exported") != 0 || p.gauge.waiting.Load() != 0 || p.gauge.dropped.Load() != 0 {
					t.Errorf("spans were lost:\n%s", j)
				}
			})
		}
	}
}
