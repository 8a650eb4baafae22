package config

import "fmt"

// Warnings names what is set and hardly meant, each beginning with its path.
// Unlike what validation refuses it does no harm at once.
func (c *Config) Warnings() []string {
	var warnings []string
	if c.Inbox.Retention > 0 && c.Inbox.Retention < c.Outbox.Retention {
		warnings = append(warnings, fmt.Sprintf("inbox.retention: %s is shorter than outbox.retention, %s: a message that is replayed after that is processed again", c.Inbox.Retention, c.Outbox.Retention))
	}
	return warnings
}
