// Command demo shows the outbox relay at work: see package demo. Its exit code
// is 0 if the tally is clean.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/outboxrelay/relay/e2e/demo"
)

func main() {
	options := demo.Options{View: newView(os.Stdout)}
	flag.StringVar(&options.Sink, "sink", "kafka", "the broker: "+strings.Join(demo.Sinks(), " or "))
	flag.DurationVar(&options.Duration, "duration", 45*time.Second, "how long orders come in")
	flag.Float64Var(&options.Rate, "rate", 400, "the order service's transactions per second")
	flag.IntVar(&options.Relays, "relays", 2, "relays that share the outbox")
	flag.IntVar(&options.Shippers, "shippers", 2, "shipping services that share the consuming")
	flag.DurationVar(&options.KillEvery, "kill-every", 5*time.Second, "time between kills of a relay, and of a shipping service; 0 kills none")
	flag.Parse()
	if err := options.Check(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// A second signal ends the demo at once; the kernel ends its children.
	context.AfterFunc(ctx, stop)
	clean, err := demo.Run(ctx, options)
	switch {
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "\ninterrupted; everything is stopped")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	case !clean:
		os.Exit(1)
	}
}

func newView(out *os.File) *demo.View {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb" && os.Getenv("TERM") != ""
	return &demo.View{Out: out, Terminal: terminal, Color: terminal && os.Getenv("NO_COLOR") == ""}
}
