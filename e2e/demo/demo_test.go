package demo

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// output is a writer that a test may read at the same time.
type output struct {
	mu   sync.Mutex
	text strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func short(t *testing.T, sink string) (Options, *output) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts servers and takes half a minute")
	}
	out := new(output)
	return Options{
		Sink: sink, Duration: 7 * time.Second, Rate: 200, Relays: 2, Shippers: 2, KillEvery: 2 * time.Second,
		Dir: t.TempDir(), View: &View{Out: out},
	}, out
}

// children are the processes that run from dir.
func children(t *testing.T, dir string) (found []string) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		line, err := os.ReadFile(path)
		if err == nil && bytes.Contains(line, []byte(dir)) {
			found = append(found, string(bytes.ReplaceAll(line, []byte{0}, []byte(" "))))
		}
	}
	return found
}

func TestDemo(t *testing.T) {
	for _, sink := range Sinks() {
		t.Run(sink, func(t *testing.T) {
			options, out := short(t, sink)
			clean, err := Run(t.Context(), options)
			if err != nil || !clean {
				t.Fatalf("clean is %v, error %v\n%s", clean, err, out)
			}
			for _, want := range []string{"commits/s", "Tally of the outbox", "Tally of the inbox", "Nothing lost", "shipped exactly once"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("the output lacks %q:\n%s", want, out)
				}
			}
			// Of relays, of shipping services, and of what these refused.
			for what, n := range map[string]int{"kills": 2, "refused": 1} {
				if found := regexp.MustCompile(`(?m)^  `+what+` +[1-9]`).FindAllString(out.String(), -1); len(found) != n {
					t.Errorf("the tally has %q, want %d lines of %s:\n%s", found, n, what, out)
				}
			}
			if left := children(t, options.Dir); left != nil {
				t.Errorf("processes are left: %q", left)
			}
		})
	}
}

// TestInterrupted shows that nothing is left when somebody stops the demo.
func TestInterrupted(t *testing.T) {
	options, out := short(t, "rabbitmq")
	options.Duration = time.Minute
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	done := make(chan error)
	go func() {
		_, err := Run(ctx, options)
		done <- err
	}()
	// Once with all running: two relays, two shipping services and the order
	// service.
	for len(children(t, options.Dir)) < 5 || !strings.Contains(out.String(), "load") {
		select {
		case err := <-done:
			t.Fatalf("it ended early: %v\n%s", err, out)
		case <-time.After(50 * time.Millisecond):
		}
	}
	interrupt()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if left := children(t, options.Dir); left != nil {
		t.Errorf("processes are left: %q", left)
	}
	if left, err := os.ReadDir(options.Dir); err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}

func TestCheckOptions(t *testing.T) {
	t.Parallel()
	good := Options{Sink: "kafka", Duration: time.Minute, Rate: 1, Relays: 1, Shippers: 1}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	bad := Options{Sink: "carrier pigeon", KillEvery: time.Second}
	err := bad.Check()
	for _, want := range []string{"carrier pigeon", "kafka, rabbitmq", "duration", "rate", "relays", "shippers", "kill-every"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}
