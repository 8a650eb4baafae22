package rabbitmq

import (
	"time"

	"github.com/outboxrelay/relay/inbox/internal/consume"
)

// SetOutagePatience replaces outagePatience; call it before Run.
func (c *Consumer) SetOutagePatience(d time.Duration) {
	core := c.core()
	core.Patience = d
	c.runner = consume.New(core)
}
