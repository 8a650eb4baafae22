package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/inspect"
)

const (
	// rowSecurityInterval is how often a running relay looks for row-level
	// security, which somebody may turn on at any time.
	rowSecurityInterval = time.Minute
	// rowSecurityRetry is the pause after a failed look.
	rowSecurityRetry = time.Second
	// rowSecurityTimeout bounds a look.
	rowSecurityTimeout = 10 * time.Second
)

// rowSecurityWatch tells, once, that row-level security hides rows from the
// relay: nothing fails then, and nothing is published.
type rowSecurityWatch struct {
	pool   *pgxpool.Pool
	config *config.Config
	logger *slog.Logger
	// told is the message of each table that was told about.
	told map[string]string
}

func newRowSecurityWatch(pool *pgxpool.Pool, c *config.Config, logger *slog.Logger) *rowSecurityWatch {
	return &rowSecurityWatch{pool: pool, config: c, logger: logger, told: map[string]string{}}
}

// run looks until ctx ends.
func (w *rowSecurityWatch) run(ctx context.Context) {
	for {
		pause := rowSecurityInterval
		if err := w.look(ctx); err != nil {
			pause = rowSecurityRetry // the loop tells what is wrong with the database
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// look tells what has changed.
func (w *rowSecurityWatch) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, rowSecurityTimeout)
	defer cancel()
	findings, err := inspect.RowSecurity(ctx, w.pool, w.config)
	if err != nil {
		return err
	}
	found := map[string]string{}
	for _, f := range findings {
		found[f.Subject] = f.Message
		if w.told[f.Subject] != f.Message {
			w.logger.Warn("rows are hidden from this relay", "subject", f.Subject, "problem", f.Message, "remedy", f.Remedy)
		}
	}
	for subject := range w.told {
		if _, still := found[subject]; !still {
			w.logger.Info("rows are no longer hidden from this relay", "subject", subject)
		}
	}
	w.told = found
	return nil
}
