// Command dashboard makes the picture of the Grafana dashboard that the
// documentation shows. It lets two relays work for some minutes, during which a
// broker and the database are away for a while, messages are refused and a relay
// is killed; has a real Prometheus scrape them and watch the chart's alerts; runs
// the query of every panel, and fails if one finds nothing; and draws the panels.
//
// It plots them itself, as Grafana does not come from any package registry.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/outboxrelay/relay/e2e/servers"
)

// Prometheus' settings for a run of some minutes.
const (
	scrapeInterval = 2 * time.Second
	step           = 2 * time.Second
)

func main() {
	root := flag.String("root", "..", "the repository")
	binary := flag.String("relay", "../bin/relay", "the relay's binary")
	png := flag.String("out", "../docs/images/dashboard.png", "the picture")
	html := flag.String("html", "", "keep the page here")
	pace := flag.Float64("pace", 1, "how many times longer than usual each part takes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *root, *binary, *png, *html, *pace); err != nil {
		fmt.Fprintln(os.Stderr, "dashboard:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root, binary, png, html string, pace float64) error {
	chart := filepath.Join(root, "deploy/helm/outbox-relay/files")
	board, err := readDashboard(filepath.Join(chart, "dashboard.json"))
	if err != nil {
		return err
	}
	browser, err := servers.Chromium(ctx, os.Stderr)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "outbox-relay-dashboard-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	st, err := newStage(ctx, dir, binary, filepath.Join(chart, "alerts"))
	if err != nil {
		return err
	}
	defer st.close()
	from := time.Now()
	events, err := st.play(ctx, pace)
	if err != nil {
		return err
	}
	w := window{from: from, to: time.Now(), step: step}
	page := page{Title: board.Title, window: w, events: events}
	for _, p := range board.graphs() {
		drawn, err := st.draw(ctx, board, p, w, events)
		if err != nil {
			return err
		}
		page.Panels = append(page.Panels, drawn)
	}
	if err := st.stopRelays(); err != nil {
		return err
	}
	if html == "" {
		html = filepath.Join(dir, "dashboard.html")
	}
	height, err := page.write(html)
	if err != nil {
		return err
	}
	if png, err = filepath.Abs(png); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(png), 0o755); err != nil {
		return err
	}
	if err := servers.Screenshot(ctx, browser, html, png, pageWidth, height); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "dashboard: %d panels, all with data, are in %s\n", len(page.Panels), png)
	return nil
}

// draw runs a panel's queries, which all have to find something.
func (st *stage) draw(ctx context.Context, board *dashboard, p panel, w window, events []event) (drawnPanel, error) {
	var all []series
	for _, t := range p.Targets {
		expr, err := board.expand(t.Expr, scrapeInterval, step)
		if err != nil {
			return drawnPanel{}, err
		}
		found, err := api{st.prometheus.URL()}.queryRange(ctx, expr, t, w)
		if err != nil {
			return drawnPanel{}, fmt.Errorf("panel %q: %w", p.Title, err)
		}
		if !hasData(found) {
			return drawnPanel{}, fmt.Errorf("panel %q: the query found nothing: %s", p.Title, expr)
		}
		all = append(all, found...)
	}
	return drawPanel(p, all, w, events)
}
