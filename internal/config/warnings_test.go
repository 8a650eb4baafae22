package config_test

import (
	"strings"
	"testing"

	"github.com/outboxrelay/relay/internal/config"
)

func TestDefaultsHaveNoWarnings(t *testing.T) {
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
