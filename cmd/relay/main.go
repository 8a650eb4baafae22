// Relay is the transactional outbox relay: it publishes the rows of an outbox
// table in PostgreSQL to Kafka or RabbitMQ.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Set at build time by -ldflags -X.
var (
	version = "dev"
	commit  = ""
)

// Exit codes.
const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	go func() {
		// The first signal stops in good order. From then on signals have their
		// default effect again, so that a second one exits at once.
		<-ctx.Done()
		stop()
	}()
	os.Exit(run(ctx, os.Args[1:]))
}

// run executes the command line and returns the exit code.
func run(ctx context.Context, arguments []string) int {
	root := newRoot()
	root.SetArgs(arguments)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if failure, ok := errors.AsType[*runtimeError](err); ok {
		if failure.err != nil {
			fmt.Fprintln(os.Stderr, "relay:", failure.err)
		}
		return exitFailure
	}
	fmt.Fprintln(os.Stderr, "relay:", err)
	return exitUsage
}

// runtimeError is a failure that is neither the command line's nor the
// configuration's; without err, its command has said what is wrong.
type runtimeError struct{ err error }

func (e *runtimeError) Error() string {
	if e.err == nil {
		return "failed"
	}
	return e.err.Error()
}

func (e *runtimeError) Unwrap() error { return e.err }

func failed(err error) error {
	if err == nil {
		return nil
	}
	return &runtimeError{err}
}
