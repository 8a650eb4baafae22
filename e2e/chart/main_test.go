// Package chart_test proves the Helm chart: helm installs it into a real
// Kubernetes API, and the containers' commands run, exactly as rendered, as
// local processes between real servers.
package chart_test

import (
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
