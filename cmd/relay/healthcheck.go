package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/outboxrelay/relay/internal/admin"
	"github.com/outboxrelay/relay/internal/config"
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
			return failed(healthcheck(ctx, c.HTTP))
		},
	}
	command.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait for the answer")
	return command
}

func healthcheck(ctx context.Context, listener config.HTTP) error {
	host, port, err := net.SplitHostPort(listener.Listen)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "localhost" // a listener on all addresses is asked on the nearest
	}
	scheme, client := "http://", http.DefaultClient
	own, err := listener.TLS.Certificate()
	if err != nil {
		return err
	}
	if own != nil {
		scheme, client = "https://", &http.Client{Transport: &http.Transport{TLSClientConfig: trustOnly(own)}}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+net.JoinHostPort(host, port)+admin.ReadyPath, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
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

// trustOnly accepts the listener's own certificate, whatever name it was issued
// for, and no other: the check asks on the loopback.
func trustOnly(own *tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // VerifyPeerCertificate is stricter
		VerifyPeerCertificate: func(certificates [][]byte, _ [][]*x509.Certificate) error {
			if len(certificates) == 0 || !bytes.Equal(certificates[0], own.Certificate[0]) {
				return errors.New("the listener presents another certificate than http.tls.cert_file: it was replaced; restart the relay")
			}
			return nil
		},
	}
}
