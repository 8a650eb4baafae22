package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

// diagnose adds to an error of a connection what it usually means and what to
// do about it. No error of this package holds the password.
func (c *cluster) diagnose(err error) error {
	remedy := c.remedy(err)
	if remedy == "" {
		return fmt.Errorf("kafka %s: %w", c.name, err)
	}
	return fmt.Errorf("kafka %s: %w; %s", c.name, err, remedy)
}

func (c *cluster) remedy(err error) string {
	if code, ok := errors.AsType[kafkago.Error](err); ok {
		switch code {
		case kafkago.SASLAuthenticationFailed:
			return fmt.Sprintf("the broker refused user %q: check sasl.username, sasl.password and sasl.mechanism", c.config.SASL.Username)
		case kafkago.UnsupportedSASLMechanism:
			return fmt.Sprintf("the broker does not offer sasl.mechanism %s: use one that this listener has enabled", c.config.SASL.Mechanism)
		case kafkago.IllegalSASLState:
			return "the listener does not use SASL: remove sasl, or use the port of a SASL listener"
		case kafkago.InvalidTimestamp:
			return fmt.Sprintf("records carry the relay's time, which is %s now: set the relay's and the broker's clock right, or raise the topic's message.timestamp.after.max.ms and message.timestamp.before.max.ms", time.Now().UTC().Format(time.RFC3339))
		case kafkago.NotEnoughReplicas, kafkago.NotEnoughReplicasAfterAppend:
			return "fewer replicas than the topic's min.insync.replicas are in sync: bring brokers back"
		}
		return ""
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "the broker's certificate is signed by an authority that is not trusted: set tls.ca_file to its certificate"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the broker's certificate is for another name: set tls.server_name, or dial the name that it has"
	}
	if _, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		return "the broker's certificate is not valid"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "the broker did not answer in TLS: is TLS misconfigured? Set tls.enabled: false, or use the port of a TLS listener"
	}
	if isAlert(err) {
		if c.config.TLS.CertFile == "" {
			return "the broker ended the TLS handshake: if it demands a client certificate, set tls.cert_file and tls.key_file"
		}
		return "the broker refused the TLS handshake: check that it trusts the authority of tls.cert_file"
	}
	if isHangUp(err) {
		return c.hangUpRemedy()
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "check that the broker runs, and that brokers and the broker's advertised.listeners have its host and port"
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return "check the host's name in brokers, and in the broker's advertised.listeners"
	}
	return ""
}

// hangUpRemedy is for a connection that the other side ended. That happens to
// every connection once, in a restart or by a network, and says nothing about
// the settings when they have worked before. When they never have, what the
// listener said first tells what it expects.
func (c *cluster) hangUpRemedy() string {
	encrypted, authenticated := c.config.TLS.Enabled, c.config.SASL.Mechanism != ""
	switch heard := c.dialed.heard.Load(); {
	case c.proven.Load():
		return ""
	case heard == heardTLS && !encrypted:
		return "the broker answered in TLS: is TLS misconfigured? Set tls.enabled: true, or use the port of a listener without TLS"
	case heard != heardNothing && authenticated:
		return "the broker closed the connection: check that this port is of a listener with SASL"
	case heard != heardNothing:
		return "the broker closed the connection: if it wants SASL, set sasl"
	case encrypted:
		return "the broker closed the connection without a word: is TLS misconfigured? If the listener does not use TLS, set tls.enabled: false; else check that a broker is behind this address"
	}
	return "the broker closed the connection without a word: is TLS misconfigured? If the listener wants TLS, set tls.enabled: true; else check that a broker is behind this address"
}

// isHandshakeFailure reports whether TLS failed for a reason that another
// attempt cannot change.
func isHandshakeFailure(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	_, ok := errors.AsType[tls.RecordHeaderError](err)
	return ok || isAlert(err)
}

// isAlert reports whether the broker ended TLS with an alert. With TLS 1.3 that
// is how it refuses a client's certificate, when the handshake is over for the
// client.
func isAlert(err error) bool {
	operation, ok := errors.AsType[*net.OpError](err)
	return ok && operation.Op == "remote error"
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}

// isHangUp reports whether the other side closed the connection, or answered
// what is no Kafka response, which is how a listener shows that it expects
// another protocol.
func isHangUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
