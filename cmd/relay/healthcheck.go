package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"
)

func newHealthcheck(o *options) *cobra.Command {
	timeout := 3 * time.Second
	command := &cobra.Command{
		Use:     "healthcheck",
		Short:   "Ask the running relay whether it is ready; for images without a shell",
		Example: "  relay healthcheck --config relay.yaml",
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := o.load()
			if err != nil {
				return err
			}
			if c.HTTP.Listen == "" {
				return errors.New("http.listen is empty: the relay has no listener to ask")
			}
			ctx, cancel := context.WithTimeout(command.Context(), timeout)
			defer cancel()
			return failed(c.HTTP.CheckReady(ctx))
		},
	}
	command.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait for the answer")
	return command
}
