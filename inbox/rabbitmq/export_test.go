package rabbitmq

import "time"

// SetOutagePatience replaces outagePatience; call it before Run.
func (c *Consumer) SetOutagePatience(d time.Duration) { c.patience = d }
