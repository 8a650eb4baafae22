package main

import (
	"context"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/migrations"
)

func newMigrate(o *options) *cobra.Command {
	var only string
	var print, dryRun bool
	command := &cobra.Command{
		Use:   "migrate",
		Short: "Create or upgrade the outbox table",
		Long: `Applies pending migrations, each in a transaction of its own. Running it twice, or
from two places at once, does no harm.`,
		Example: `  relay migrate
  relay migrate --dry-run
  relay migrate --print | psql "$DATABASE_URL"`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			if only != "" && only != "outbox" {
				return fmt.Errorf("--only %s: this version has migrations for outbox only", only)
			}
			c, err := o.load()
			if err != nil {
				return err
			}
			target := migrations.Target{Schema: c.Outbox.Schema, Table: c.Outbox.Table}
			if print {
				return failed(target.Print(command.OutOrStdout()))
			}
			return failed(migrate(command.Context(), c, target, dryRun, command.OutOrStdout()))
		},
	}
	command.Flags().StringVar(&only, "only", "", "apply only these migrations: outbox")
	command.Flags().BoolVar(&print, "print", false, "write the SQL of all migrations to stdout and touch nothing")
	command.Flags().BoolVar(&dryRun, "dry-run", false, "name what is pending and touch nothing")
	command.MarkFlagsMutuallyExclusive("print", "dry-run")
	return command
}

func migrate(ctx context.Context, c *config.Config, target migrations.Target, dryRun bool, w io.Writer) error {
	conn, err := connect(ctx, c)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if dryRun {
		pending, err := target.Pending(ctx, conn)
		if err != nil {
			return err
		}
		for _, m := range pending {
			_, _ = fmt.Fprintf(w, "pending: %d %s\n", m.Version, m.Name)
		}
		if len(pending) == 0 {
			_, _ = fmt.Fprintln(w, "nothing is pending")
		}
		return nil
	}
	applied := 0
	err = target.Apply(ctx, conn, func(m migrations.Migration) {
		applied++
		_, _ = fmt.Fprintf(w, "applied: %d %s\n", m.Version, m.Name)
	})
	if err == nil && applied == 0 {
		_, _ = fmt.Fprintln(w, "nothing is pending")
	}
	return err
}

// connect opens one connection for a command. Its error names the remedy.
func connect(ctx context.Context, c *config.Config) (*pgx.Conn, error) {
	settings, err := c.Database.PoolConfig()
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, settings.ConnConfig)
	if err == nil {
		if err = source.CheckVersion(ctx, conn); err == nil {
			return conn, nil
		}
		_ = conn.Close(ctx)
	}
	if remedy := source.Explain(err).Remedy; remedy != "" {
		return nil, fmt.Errorf("%w: %s", err, remedy)
	}
	return nil, err
}
