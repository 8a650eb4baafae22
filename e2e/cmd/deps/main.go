// Command deps gets what the end-to-end tests and the demo need: it installs
// the system's packages that are missing, as root, and downloads the rest into
// the cache. It may run any number of times.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/outboxrelay/relay/e2e/servers"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := servers.Deps(ctx, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "deps:", err)
		os.Exit(1)
	}
}
