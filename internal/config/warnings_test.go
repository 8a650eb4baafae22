package config_test

import (
	"slices"
	"testing"

	"github.com/outboxrelay/relay/internal/config"
)

func TestPoliciesOfLaterVersionsAreAcceptedWithAWarning(t *testing.T) {
	c, err := config.Parse("relay.yaml", []byte(`
sinks: {main: {kafka: {brokers: ["localhost:9092"]}}}
routes:
  - {match: {topic: "mail.*"}, sink: main, on_failure: dead_letter}
  - {match: {topic: "*"}, sink: main}
failures: {policy: skip}
`), func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"routes[0].on_failure: dead_letter is not available in this version: a refused message holds back its key and is tried again",
		"failures.policy: skip is not available in this version: a refused message holds back its key and is tried again",
	}
	if got := c.Warnings(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := config.Default().Warnings(); got != nil {
		t.Errorf("the defaults have warnings: %q", got)
	}
}
