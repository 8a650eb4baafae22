package faults_test

import (
	"flag"
	"os"
	"testing"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// soakFor is how long the random mix runs; 0 is not at all.
var soakFor = flag.Duration("soak", 0, "run the random mix of all faults for so long")

func TestMain(m *testing.M) { os.Exit(scenario.Main(m)) }
