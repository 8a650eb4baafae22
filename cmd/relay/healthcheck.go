package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/outboxrelay/relay/internal/admin"
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
			return failed(healthcheck(ctx, c.HTTP.Listen))
		},
	}
	command.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait for the answer")
	return command
}

func healthcheck(ctx context.Context, listen string) error {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "localhost" // a listener on all addresses is asked on the nearest
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+admin.ReadyPath, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode == http.StatusOK {
		return nil
	}
	body, _ := io.ReadAll(io.LimitReader(response.Body, 1024)) // the status says enough
	return fmt.Errorf("%s answered %s: %s", admin.ReadyPath, response.Status, strings.TrimSpace(string(body)))
}
