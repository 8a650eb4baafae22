package main

import (
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/delivery"
	"github.com/outboxrelay/relay/internal/source"
)

// engine is the loop and what wakes it.
type engine struct {
	loop *delivery.Loop
	wake func()
}

// newEngine adds to the options what the configuration says.
func newEngine(c *config.Config, pool *pgxpool.Pool, publishers publishers, options delivery.Options) engine {
	claimer := source.NewClaimer(pool, c.Outbox.Options())
	options.Source = claimer
	options.Routes = c.Table()
	options.Sinks = publishers
	options.Workers = c.Outbox.Workers
	options.PollInterval = c.Outbox.PollInterval
	options.PublishTimeout = c.Outbox.PublishTimeout
	options.TotalOrder = c.Outbox.Ordering == source.OrderTotal
	options.Failures = c.Failures
	options.Copies = c.Copies()
	options.ShutdownTimeout = c.ShutdownTimeout
	loop := delivery.New(options)
	return engine{loop, func() {
		claimer.Notified()
		loop.Wake()
	}}
}
