package main

import (
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/delivery"
	"github.com/outboxrelay/relay/internal/source"
)

// newRelay adds to the options what the configuration says.
func newRelay(c *config.Config, pool *pgxpool.Pool, barrier *source.Barrier, publishers publishers, options delivery.Options) *delivery.Relay {
	options.Source = func(p delivery.Pipeline) delivery.Source {
		of := c.Outbox.Options()
		of.Workers, of.Barrier = p.Workers, barrier
		if !p.Everything {
			of.Pipeline, of.Filter = p.Name, p.Filter.SQL
		}
		return source.NewClaimer(pool, of)
	}
	options.Routes = c.Table()
	options.Sinks = publishers
	options.Workers = c.Outbox.Workers
	options.Connections = int(pool.Config().MaxConns)
	options.PollInterval = c.Outbox.PollInterval
	options.PublishTimeout = c.Outbox.PublishTimeout
	options.TotalOrder = c.Outbox.Ordering == source.OrderTotal
	options.Failures = c.Failures
	options.Copies = c.Copies()
	options.ShutdownTimeout = c.ShutdownTimeout
	return delivery.New(options)
}
