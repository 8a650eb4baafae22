package scenario

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/servers"
)

// BinaryVariable names the relay's binary for the tests; unset, Main builds it.
const BinaryVariable = "RELAY_TEST_BINARY"

// sideBySide is how many parallel tests run at a time, unless -parallel says
// otherwise: so many that two cores can bear it.
const sideBySide = 4

// startLimit bounds getting and starting what the environment lacks.
const startLimit = 10 * time.Minute

// Main is the body of TestMain: it builds the relay, starts the shared servers
// that the environment does not name, tells the tests through the environment
// where they are, runs the tests, and returns the exit code.
func Main(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	dir, err := os.MkdirTemp("", "outbox-relay-scenario-")
	if err != nil {
		return fail(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if os.Getenv(BinaryVariable) == "" {
		binary := filepath.Join(dir, "relay")
		if err := build(ctx, binary); err != nil {
			return fail(err)
		}
		if err := os.Setenv(BinaryVariable, binary); err != nil {
			return fail(err)
		}
	}
	if os.Getenv(ProgramsVariable) == "" {
		if err := buildPrograms(ctx, dir); err != nil {
			return fail(err)
		}
		if err := os.Setenv(ProgramsVariable, dir); err != nil {
			return fail(err)
		}
	}
	shared, err := servers.StartShared(ctx, servers.FromEnvironment(), servers.EnvironmentOptions{})
	if err != nil {
		return fail(err)
	}
	defer func() { _ = shared.Close() }() // what it leaves, the next run removes
	for _, variable := range shared.Variables() {
		name, value, _ := strings.Cut(variable, "=")
		if err := os.Setenv(name, value); err != nil {
			return fail(err)
		}
	}
	// Scenarios wait more than they compute, but for what they measure.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		if err := f.Value.Set(strconv.Itoa(sideBySide)); err != nil {
			return fail(err)
		}
	}
	code := m.Run()
	if code != 0 {
		_ = shared.KeepLogs(filepath.Join(servers.LogsDir(), "shared"))
	}
	return code
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "scenario:", err)
	return 1
}

// build makes the relay from the sources that the tests belong to.
func build(ctx context.Context, binary string) error {
	return goBuild(ctx, "github.com/outboxrelay/relay", "-o", binary, "./cmd/relay")
}

// buildPrograms makes the programs that the scenarios run into the folder.
func buildPrograms(ctx context.Context, dir string) error {
	return goBuild(ctx, "github.com/outboxrelay/relay/e2e", "-o", dir, "./cmd/effects", "./cmd/producer")
}

// goBuild runs go build in the module's folder.
func goBuild(ctx context.Context, module string, arguments ...string) error {
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
	root, err := list.Output()
	if err != nil {
		return fmt.Errorf("find the sources of %s: %w", module, err)
	}
	command := exec.CommandContext(ctx, "go", append([]string{"build"}, arguments...)...)
	command.Dir = string(bytes.TrimSpace(root))
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", module, err, output)
	}
	return nil
}
