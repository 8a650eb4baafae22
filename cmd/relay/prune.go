package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/source"
)

// pruneStatement bounds a statement that prunes the inbox.
const pruneStatement = time.Minute

func newPrune(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "prune",
		Short: "Remove published rows and inbox rows that are older than their retention",
		Long: `Removes published rows that are older than outbox.retention and, where the database
has an inbox, its rows that are older than inbox.retention, in small batches. A running
relay removes published rows once a minute by itself, and inbox rows never: run this
once an hour in the consumers' databases.`,
		Example: "  relay prune --config relay.yaml",
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := o.load()
			if err != nil {
				return err
			}
			if c.Outbox.Retention == 0 && c.Inbox.Retention == 0 {
				return errors.New("outbox.retention and inbox.retention are 0: rows are kept for ever; set a retention to prune")
			}
			return failed(prune(command.Context(), c, command.OutOrStdout()))
		},
	}
}

// prune removes what is old of either table. One of them may be missing: they
// are often in different databases.
func prune(ctx context.Context, c *config.Config, w io.Writer) error {
	pool, err := newPool(ctx, c)
	if err != nil {
		return err
	}
	defer source.ClosePool(pool)
	if err := pool.Ping(ctx); err != nil { // one error rather than one for each table
		return explained(err)
	}
	noInbox, inboxErr := false, error(nil)
	if c.Inbox.Retention > 0 {
		box := inbox.Inbox{Schema: c.Inbox.Schema, Table: c.Inbox.Table, Retention: c.Inbox.Retention}
		deleted, err := box.Prune(ctx, source.Bounded{DB: pool, Access: pgx.ReadWrite, Limit: pruneStatement})
		noInbox = errors.Is(err, inbox.ErrNoTable)
		if err == nil {
			_, err = fmt.Fprintf(w, "removed %d inbox rows older than %s\n", deleted, c.Inbox.Retention)
		}
		if !noInbox {
			inboxErr = explained(err)
		}
	}
	if c.Outbox.Retention > 0 {
		deleted, err := source.NewPruner(pool, c.Outbox.Schema, c.Outbox.Table, c.Outbox.Retention).Prune(ctx)
		kept, some := errors.AsType[*source.KeptError](err)
		if err == nil || some {
			_, err = fmt.Fprintf(w, "removed %d published rows older than %s\n", deleted, c.Outbox.Retention)
		}
		if err == nil && some { // the others are gone: nothing failed
			_, err = fmt.Fprintf(w, "warning: %v -> %s\n", kept, kept.Remedy())
		}
		if inboxOnly := isUndefinedTable(err) && c.Inbox.Retention > 0 && !noInbox; !inboxOnly {
			return errors.Join(explained(err), inboxErr)
		}
	} else if noInbox {
		_, err := fmt.Fprintln(w, "there is no inbox here: nothing to remove")
		return err
	}
	return inboxErr
}

func isUndefinedTable(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == "42P01"
}

// explained adds the remedy to the errors that have one.
func explained(err error) error {
	if err == nil {
		return nil
	}
	if remedy := source.Explain(err).Remedy; remedy != "" {
		return fmt.Errorf("%w: %s", err, remedy)
	}
	return err
}
