package config_test

import (
	"slices"
	"strings"
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

func TestInboxMustRememberWhatCanBeReplayed(t *testing.T) {
	c := config.Default()
	c.Inbox.Retention = c.Outbox.Retention - 1
	if got := c.Warnings(); len(got) != 1 || !strings.HasPrefix(got[0], "inbox.retention: 23h59m59.999999999s is shorter than outbox.retention, 24h0m0s: ") {
		t.Errorf("got %q", got)
	}
	c.Inbox.Retention = 0 // kept for ever
	if got := c.Warnings(); got != nil {
		t.Errorf("got %q", got)
	}
}
