package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/source"
)

func newPrune(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "prune",
		Short:   "Remove published rows that are older than outbox.retention",
		Long:    "Removes published rows that are older than outbox.retention, in small batches.\nA running relay does the same once a minute.",
		Example: "  relay prune --config relay.yaml",
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := o.load()
			if err != nil {
				return err
			}
			if c.Outbox.Retention == 0 {
				return errors.New("outbox.retention is 0: published rows are kept for ever; set a retention to prune")
			}
			deleted, err := prune(command.Context(), c)
			if err == nil {
				_, err = fmt.Fprintf(command.OutOrStdout(), "removed %d published rows older than %s\n", deleted, c.Outbox.Retention)
			}
			return failed(err)
		},
	}
}

func prune(ctx context.Context, c *config.Config) (int64, error) {
	pool, err := newPool(ctx, c)
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	deleted, err := source.NewPruner(pool, c.Outbox.Schema, c.Outbox.Table, c.Outbox.Retention).Prune(ctx)
	if err != nil {
		if remedy := source.Explain(err).Remedy; remedy != "" {
			err = fmt.Errorf("%w: %s", err, remedy)
		}
	}
	return deleted, err
}
