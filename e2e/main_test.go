// Package e2e_test plays the scenarios that every release has to pass, with the
// relay's real binary between real servers.
package e2e_test

import (
	"os"
	"testing"

	"github.com/outboxrelay/relay/e2e/scenario"
)

func TestMain(m *testing.M) { os.Exit(scenario.Main(m)) }
