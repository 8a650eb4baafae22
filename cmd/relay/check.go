package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/inspect"
	"github.com/outboxrelay/relay/internal/source"
)

func newCheck(o *options) *cobra.Command {
	var (
		format  output
		offline bool
	)
	command := &cobra.Command{
		Use:   "check",
		Short: "Validate the configuration, then reach the database and every sink",
		Long: `Validates the configuration, then looks at the database (version, table, grants,
notifications) and at every sink (reachable, topics or exchanges of the routes).
One line per finding; exit code 1 when one of them is an error.

With --offline it reaches nothing: it validates the configuration and the files
that it names, for what runs before a database or broker has to be there.`,
		Example: "  relay check --config relay.yaml --output json",
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := o.load()
			if err != nil {
				return err
			}
			findings, err := check(command.Context(), c, offline)
			if err != nil {
				return failed(err)
			}
			if format == outputJSON {
				err = writeJSON(command.OutOrStdout(), findings)
			} else {
				err = writeFindings(command.OutOrStdout(), findings)
			}
			for _, finding := range findings {
				if finding.Level == inspect.Error && err == nil {
					err = &runtimeError{}
				}
			}
			return err
		},
	}
	command.Flags().BoolVar(&offline, "offline", false, "validate the configuration only, and reach nothing")
	format.add(command)
	return command
}

// check looks at everything, or at what it finds offline, and returns all
// findings.
func check(ctx context.Context, c *config.Config, offline bool) ([]inspect.Finding, error) {
	var findings []inspect.Finding
	for _, warning := range c.Warnings() {
		findings = append(findings, inspect.Finding{Level: inspect.Warning, Subject: "configuration", Message: warning, Remedy: "use park until then"})
	}
	var topics []string
	if !offline {
		inDatabase, conn := inspect.Database(ctx, c)
		findings = append(findings, inDatabase...)
		if conn != nil {
			// Where this fails, a finding says why already.
			topics, _ = source.PendingTopics(ctx, conn, c.Outbox.Schema, c.Outbox.Table)
			_ = conn.Close(ctx)
		}
	}
	publishers, err := newPublishers(c, slog.New(slog.DiscardHandler))
	if err != nil {
		return append(findings, inspect.Finding{Level: inspect.Error, Subject: "sinks", Message: err.Error(), Remedy: "correct the sink's settings"}), nil //nolint:nilerr // it is a finding
	}
	if offline {
		findings = append(findings, inspect.Finding{Level: inspect.OK, Subject: "configuration", Message: "is valid; nothing was reached"})
	} else {
		findings = append(findings, inspect.Sinks(ctx, publishers, c.Table(), topics)...)
	}
	_ = publishers.close() // nothing was published
	return findings, nil
}

func writeFindings(w io.Writer, findings []inspect.Finding) error {
	for _, f := range findings {
		line := fmt.Sprintf("%-7s  %s: %s", f.Level, f.Subject, f.Message)
		if f.Remedy != "" {
			line += " -> " + f.Remedy
		}
		// A finding is one line, whatever a server's message holds.
		if _, err := fmt.Fprintln(w, strings.ReplaceAll(line, "\n", " ")); err != nil {
			return failed(err)
		}
	}
	return nil
}
