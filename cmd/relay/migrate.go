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
	var format output
	command := &cobra.Command{
		Use:   "migrate",
		Short: "Create or upgrade the outbox and inbox tables",
		Long: `Applies pending migrations, each in a transaction of its own. Running it twice, or
from two places at once, does no harm.`,
		Example: `  relay migrate
  relay migrate --dry-run --output json
  relay migrate --only inbox
  relay migrate --print | psql "$DATABASE_URL"`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			switch migrations.Set(only) {
			case "", migrations.Outbox, migrations.Inbox:
			default:
				return fmt.Errorf("--only %s: must be %s or %s", only, migrations.Outbox, migrations.Inbox)
			}
			c, err := o.load()
			if err != nil {
				return err
			}
			targets := targetsOf(c, migrations.Set(only))
			if print {
				for _, target := range targets {
					if err := target.Print(command.OutOrStdout()); err != nil {
						return failed(err)
					}
				}
				return nil
			}
			return failed(migrate(command.Context(), c, targets, dryRun, format, command.OutOrStdout()))
		},
	}
	command.Flags().StringVar(&only, "only", "", "apply only these migrations: outbox or inbox")
	command.Flags().BoolVar(&print, "print", false, "write the SQL of all migrations to stdout and touch nothing")
	command.Flags().BoolVar(&dryRun, "dry-run", false, "name what is pending and touch nothing")
	format.add(command)
	command.MarkFlagsMutuallyExclusive("print", "dry-run")
	command.MarkFlagsMutuallyExclusive("print", "output")
	return command
}

// targetsOf are the tables that are migrated: both, or the only one.
func targetsOf(c *config.Config, only migrations.Set) []migrations.Target {
	outbox := migrations.Target{Schema: c.Outbox.Schema, Table: c.Outbox.Table, Set: migrations.Outbox}
	inbox := migrations.Target{Schema: c.Inbox.Schema, Table: c.Inbox.Table, Set: migrations.Inbox}
	switch only {
	case migrations.Outbox:
		return []migrations.Target{outbox}
	case migrations.Inbox:
		return []migrations.Target{inbox}
	}
	return []migrations.Target{outbox, inbox}
}

// step is a migration that is pending, or was applied now, as JSON shows it.
type step struct {
	Set     migrations.Set `json:"set"`
	Schema  string         `json:"schema"`
	Table   string         `json:"table"`
	Version int            `json:"version"`
	Name    string         `json:"name"`
	Applied bool           `json:"applied"`
}

// migrate tells of each migration in text as it goes; JSON is one document, of
// those that were applied, when all were.
func migrate(ctx context.Context, c *config.Config, targets []migrations.Target, dryRun bool, format output, w io.Writer) error {
	conn, err := connect(ctx, c)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	word := "applied"
	if dryRun {
		word = "pending"
	}
	steps := []step{}
	for _, target := range targets {
		report := func(m migrations.Migration) {
			steps = append(steps, step{target.Set, target.Schema, target.Table, m.Version, m.Name, !dryRun})
			if format == outputText {
				_, _ = fmt.Fprintf(w, "%s: %d %s\n", word, m.Version, m.Name)
			}
		}
		if dryRun {
			pending, err := target.Pending(ctx, conn)
			if err != nil {
				return err
			}
			for _, m := range pending {
				report(m)
			}
		} else if err := target.Apply(ctx, conn, report); err != nil {
			return err
		}
	}
	if format == outputJSON {
		return writeJSON(w, steps)
	}
	if len(steps) == 0 {
		_, _ = fmt.Fprintln(w, "nothing is pending")
	}
	return nil
}

// connect opens one connection for a command. Its error names the remedy.
func connect(ctx context.Context, c *config.Config) (*pgx.Conn, error) {
	settings, err := c.Database.PoolConfig()
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, settings.ConnConfig)
	if err == nil {
		if err = source.SetUp(ctx, conn); err == nil {
			return conn, nil
		}
		_ = conn.Close(ctx)
	}
	if remedy := source.Explain(err).Remedy; remedy != "" {
		return nil, fmt.Errorf("%w: %s", err, remedy)
	}
	return nil, err
}
