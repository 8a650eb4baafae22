package inspect

import (
	"context"
	"log/slog"
	"time"

	"github.com/outboxrelay/relay/internal/config"
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

// RowSecurityWatch tells, once, that row-level security hides rows from the
// relay: nothing fails then, and nothing is published.
type RowSecurityWatch struct {
	db     querier
	config *config.Config
	logger *slog.Logger
	// told is the message of each table that was told about.
	told map[string]string
}

// NewRowSecurityWatch returns a watch over the tables of the configuration; db is
// of the relay's role.
func NewRowSecurityWatch(db querier, c *config.Config, logger *slog.Logger) *RowSecurityWatch {
	return &RowSecurityWatch{db: db, config: c, logger: logger, told: map[string]string{}}
}

// Run looks until ctx ends.
func (w *RowSecurityWatch) Run(ctx context.Context) {
	for {
		pause := rowSecurityInterval
		if err := w.Look(ctx); err != nil {
			pause = rowSecurityRetry // the loop tells what is wrong with the database
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// Look tells what has changed.
func (w *RowSecurityWatch) Look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, rowSecurityTimeout)
	defer cancel()
	findings, err := RowSecurity(ctx, w.db, w.config)
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
