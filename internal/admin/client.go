package admin

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
)

// CheckReady asks a running relay's listener whether it is ready, over the
// loopback where it listens on all addresses.
func (c Config) CheckReady(ctx context.Context) error {
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "localhost" // a listener on all addresses is asked on the nearest
	}
	scheme, client := "http://", http.DefaultClient
	own, err := c.TLS.certificate()
	if err != nil {
		return err
	}
	if own != nil {
		scheme, client = "https://", &http.Client{Transport: &http.Transport{TLSClientConfig: trustOnly(own)}}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+net.JoinHostPort(host, port)+ReadyPath, nil)
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
	return fmt.Errorf("%s answered %s: %s", ReadyPath, response.Status, strings.TrimSpace(string(body)))
}

// trustOnly accepts the listener's own certificate, whatever name it was issued
// for, and no other: the check asks on the loopback.
func trustOnly(own *tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyPeerCertificate is stricter
		VerifyPeerCertificate: func(certificates [][]byte, _ [][]*x509.Certificate) error {
			if len(certificates) == 0 || !bytes.Equal(certificates[0], own.Certificate[0]) {
				return errors.New("the listener presents another certificate than http.tls.cert_file: it was replaced; restart the relay")
			}
			return nil
		},
	}
}
