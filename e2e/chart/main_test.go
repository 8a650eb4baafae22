// Package chart_test proves the Helm chart: helm installs it into a real
// Kubernetes API, and the containers' commands run, exactly as rendered, as
// local processes between real servers.
package chart_test

import (
	"context"
	"os"
	"testing"

	"github.com/outboxrelay/relay/e2e/scenario"
)

func TestMain(m *testing.M) {
	code := scenario.Main(m)
	cluster.close(code != 0)
	image.remove()
	os.Exit(code)
}

// chartVariable, set to skip, skips the tests that run programs which have to be
// built first. `make test` sets it: the build takes longer than all its tests.
const chartVariable = "RELAY_TEST_CHART"

// needsBuilt skips a test that runs such programs where they are left out.
func needsBuilt(t testing.TB) {
	t.Helper()
	if os.Getenv(chartVariable) == "skip" {
		t.Skip("runs helm or a Kubernetes: left to `make test-chart`")
	}
}

// built is the path of a program that has to be built.
func built(t testing.TB, ensure func(context.Context) (string, error)) string {
	t.Helper()
	needsBuilt(t)
	program, err := ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return program
}
