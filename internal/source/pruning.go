package source

import (
	"context"
	"log/slog"
	"time"
)

// pruneInterval is how often a running relay looks for rows past retention.
const pruneInterval = time.Minute

// Run prunes once a minute until ctx ends. A failure only skips a turn.
func (p *Pruner) Run(ctx context.Context, logger *slog.Logger) {
	ticker := time.NewTicker(pruneInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			p.turn(ctx, logger)
		}
	}
}

// turn prunes and says what came of it.
func (p *Pruner) turn(ctx context.Context, logger *slog.Logger) {
	deleted, err := p.Prune(ctx)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		logger.Warn("published rows past retention could not be removed; tried again in a minute", "error", err, "remedy", Explain(err).Remedy)
	case deleted > 0:
		logger.Debug("removed published rows past retention", "rows", deleted)
	}
}
