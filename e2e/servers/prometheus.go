package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Prometheus gets Prometheus and promtool, and returns the folder that has
// both programs. They are those of the distribution's package, Debian's or a
// relative's, unpacked into the cache: nothing is installed, and no service
// starts. A system that has promtool already needs no download.
func Prometheus(ctx context.Context, out io.Writer) (string, error) {
	if program, err := exec.LookPath("promtool"); err == nil && exists(filepath.Join(filepath.Dir(program), "prometheus")) {
		return filepath.Dir(program), nil
	}
	home, err := ensure(ctx, out, "prometheus", "Prometheus", func(dir string) error {
		return unpackPackage(ctx, "prometheus", dir)
	})
	return filepath.Join(home, "usr", "bin"), err
}

// PrometheusServer is a Prometheus that scrapes as its configuration says.
type PrometheusServer struct {
	*instance
	program string
}

// StartPrometheus starts a Prometheus with the configuration, of which
// relative paths are not allowed, and returns when it answers queries.
func StartPrometheus(ctx context.Context, configuration string, out io.Writer) (*PrometheusServer, error) {
	dir, err := Prometheus(ctx, out)
	if err != nil {
		return nil, err
	}
	in, err := newInstance("prometheus", os.TempDir(), 1)
	if err != nil {
		return nil, err
	}
	p := &PrometheusServer{instance: in, program: filepath.Join(dir, "prometheus")}
	if err := os.WriteFile(p.config(), []byte(configuration), 0o644); err != nil {
		return nil, errors.Join(fmt.Errorf("writing Prometheus' configuration: %w", err), p.Close())
	}
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *PrometheusServer) config() string { return p.scratch.path("prometheus.yml") }

// URL is where its HTTP interface is.
func (p *PrometheusServer) URL() string { return "http://" + p.ports[0].address() }

func (p *PrometheusServer) start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.checkStartable(); err != nil {
		return err
	}
	command := exec.Command(p.program,
		"--config.file="+p.config(),
		"--storage.tsdb.path="+p.dataPath(),
		"--web.listen-address="+p.ports[0].address())
	process, err := startProcess("Prometheus", command, p.LogPath())
	if err != nil {
		return err
	}
	p.process = process
	probe := func(ctx context.Context) error { return httpOK(ctx, p.URL()+"/-/ready") }
	if err := process.awaitReady(ctx, 60*time.Second, probe); err != nil {
		process.kill()
		return err
	}
	return nil
}

// Stop stops Prometheus and waits until it is gone.
func (p *PrometheusServer) Stop() error { return p.stop(syscall.SIGTERM, 30*time.Second) }

// Close stops Prometheus and removes its data.
func (p *PrometheusServer) Close() error {
	p.Kill()
	return p.close()
}

// httpOK is nil when the address answers 200.
func httpOK(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, response.Status)
	}
	return nil
}
