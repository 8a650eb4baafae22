// Command deps gets what the end-to-end tests and the demo need: it installs
// the system's packages that are missing, as root, downloads the rest into the
// cache, and builds there what cannot be downloaded. It may run any number of
// times.
//
//	deps [servers] [chart]
//
// servers, which is what it gets when nothing is named, are what the demo and
// most tests need. chart is for the tests of the Helm chart: a Kubernetes, helm
// and its tools, whose first build takes a quarter of an hour.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/outboxrelay/relay/e2e/servers"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "deps:", err)
		os.Exit(1)
	}
}

// run gets what is named, and nothing when a name is wrong.
func run(ctx context.Context, names []string) error {
	if len(names) == 0 {
		names = []string{"servers"}
	}
	var gets []func(context.Context, io.Writer) error
	for _, name := range names {
		switch name {
		case "servers":
			gets = append(gets, servers.Deps)
		case "chart":
			gets = append(gets, servers.ChartDeps)
		default:
			return fmt.Errorf("unknown name %q: there are servers and chart", name)
		}
	}
	for _, get := range gets {
		if err := get(ctx, os.Stderr); err != nil {
			return err
		}
	}
	return nil
}
