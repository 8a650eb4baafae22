package main

import (
	"github.com/spf13/cobra"
)

func newConfig(o *options) *cobra.Command {
	command := &cobra.Command{
		Use:     "config",
		Short:   "Work with the configuration",
		Example: "  relay config print",
		// Otherwise an unknown subcommand would be answered with help and success.
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error { return command.Help() },
	}
	command.AddCommand(&cobra.Command{
		Use:     "print",
		Short:   "Show the effective configuration, with defaults filled in and secrets replaced by ***",
		Example: "  relay config print --config relay.yaml",
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := o.load()
			if err != nil {
				return err
			}
			return failed(c.Print(command.OutOrStdout()))
		},
	})
	return command
}
