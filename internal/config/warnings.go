package config

import "fmt"

// Warnings names what is set and yet not done by this version, or hardly meant,
// each beginning with its path. Unlike what validation refuses it does no harm
// at once: a refused message is kept and tried again, whatever the policy.
func (c *Config) Warnings() []string {
	var warnings []string
	warn := func(path, policy string) {
		if policy == "dead_letter" || policy == "skip" {
			warnings = append(warnings, fmt.Sprintf("%s: %s is not available in this version: a refused message holds back its key and is tried again", path, policy))
		}
	}
	general := c.Failures.Policy
	for i, route := range c.Routes {
		if route.OnFailure != general {
			warn(fmt.Sprintf("routes[%d].on_failure", i), route.OnFailure)
		}
	}
	warn("failures.policy", general)
	if c.Inbox.Retention > 0 && c.Inbox.Retention < c.Outbox.Retention {
		warnings = append(warnings, fmt.Sprintf("inbox.retention: %s is shorter than outbox.retention, %s: a message that is replayed after that is processed again", c.Inbox.Retention, c.Outbox.Retention))
	}
	return warnings
}
