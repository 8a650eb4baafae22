package rabbitmq

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The first bytes of TLS records that answer an AMQP greeting.
const (
	recordAlert     = 0x15
	recordHandshake = 0x16
)

// dial connects, encrypts and authenticates, and returns within the endpoint's
// timeout. patient says when a write that does not move is no stall.
func dial(ctx context.Context, target endpoint, changed *waiters, patient func() bool) (*amqp.Connection, *stream, error) {
	ctx, cancel := context.WithTimeout(ctx, target.dialTimeout)
	defer cancel()
	var dialer net.Dialer
	socket, err := dialer.DialContext(ctx, "tcp", target.address)
	if err != nil {
		return nil, nil, away(reasonConnection, fmt.Errorf("RabbitMQ at %s cannot be reached: %w", target.address, err))
	}
	var conn net.Conn = &pacedConn{Conn: socket, timeout: writeTimeout, patient: patient}
	if target.tls != nil {
		encrypted := tls.Client(conn, target.tls)
		if err := encrypted.HandshakeContext(ctx); err != nil {
			_ = socket.Close()
			return nil, nil, explainTLS(target, err)
		}
		conn = encrypted
	}
	// Cleared by amqp091 when the connection is open.
	deadline, _ := ctx.Deadline()
	if err := socket.SetReadDeadline(deadline); err != nil {
		_ = socket.Close()
		return nil, nil, away(reasonConnection, fmt.Errorf("RabbitMQ at %s: %w", target.address, err))
	}
	s := newStream(conn, socket, changed)
	stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
	defer stop()
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName("outbox-relay")
	connection, err := amqp.Open(s, amqp.Config{
		SASL:       target.auth,
		Vhost:      target.vhost,
		ChannelMax: target.channelMax,
		FrameSize:  defaultFrameMax,
		Heartbeat:  target.heartbeat,
		Locale:     "en_US",
		Properties: properties,
	})
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		err = explainHandshake(ctx, target, s, err)
		_ = s.Close()
		return nil, nil, err
	}
	return connection, s, nil
}

// explainTLS says why TLS could not be agreed on.
func explainTLS(target endpoint, err error) error {
	hint := ""
	switch {
	case isError[tls.RecordHeaderError](err):
		hint = ": the port does not speak TLS; use amqp:// or RabbitMQ's TLS port (5671)"
	case isError[x509.UnknownAuthorityError](err):
		hint = ": the broker's certificate is signed by an authority that is not trusted; set tls.ca_file to its CA"
	case isError[x509.HostnameError](err):
		hint = ": the broker's certificate is for another name; set tls.server_name"
	case isError[x509.CertificateInvalidError](err):
		hint = ": the broker's certificate is not valid"
	}
	return away(reasonTLS, fmt.Errorf("RabbitMQ at %s: TLS failed%s: %w", target.address, hint, err))
}

func isError[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// explainHandshake says why the broker did not let us in. amqp091 reports
// wrong credentials for whatever ends the connection at that point, so the
// stream's own error decides.
func explainHandshake(ctx context.Context, target endpoint, s *stream, err error) error {
	if first := s.firstByte(); first == recordAlert || first == recordHandshake {
		return away(reasonTLS, fmt.Errorf("RabbitMQ at %s answers with TLS: use amqps:// in the URL, or its plain port (5672)", target.address))
	}
	cause := s.cause()
	var timeout net.Error
	switch e, _ := errors.AsType[*amqp.Error](err); {
	case ctx.Err() != nil, errors.As(cause, &timeout) && timeout.Timeout():
		return away(reasonTimeout, fmt.Errorf("RabbitMQ at %s took the connection and did not answer within %s", target.address, target.dialTimeout.Round(time.Millisecond)))
	case e == nil:
		return away(reasonConnection, fmt.Errorf("RabbitMQ at %s: %w", target.address, err))
	case isTLSFailure(cause):
		return explainTLS(target, cause)
	case s.firstByte() == 0 && (errors.Is(cause, syscall.ECONNRESET) || errors.Is(cause, syscall.EPIPE)):
		// A network or a dying broker; one that expects TLS says so first.
		return away(reasonConnection, fmt.Errorf("RabbitMQ at %s: the connection was reset before the broker answered: %w", target.address, cause))
	case s.firstByte() == 0:
		return away(reasonConnection, fmt.Errorf("RabbitMQ at %s closed the connection without a word: is it a RabbitMQ port, and does it expect TLS (amqps://)? (%w)", target.address, err))
	case errors.Is(err, amqp.ErrSASL):
		return away(reasonAuthentication, fmt.Errorf("RabbitMQ at %s offers none of the URL's authentication mechanisms: %w", target.address, err))
	case e.Code == amqp.NotAllowed, errors.Is(err, amqp.ErrVhost):
		return away(reasonAuthentication, fmt.Errorf("RabbitMQ at %s: user %q cannot use virtual host %q: create it and grant permissions (rabbitmqctl add_vhost, set_permissions): %w", target.address, target.user, target.vhost, err))
	case errors.Is(err, amqp.ErrCredentials):
		return away(reasonAuthentication, fmt.Errorf("RabbitMQ at %s closed the connection when user %q logged in, as it does with a wrong user name or password: check both in the URL (the user guest may only connect from the broker's own host)", target.address, target.user))
	case e.Code == amqp.AccessRefused:
		return away(reasonAuthentication, fmt.Errorf("RabbitMQ at %s refused user %q: check user name and password in the URL: %w", target.address, target.user, err))
	}
	return away(reasonConnection, fmt.Errorf("RabbitMQ at %s: %w", target.address, err))
}

// isTLSFailure recognizes the broker's alert about our certificate: with TLS
// 1.3 it arrives after the handshake.
func isTLSFailure(err error) bool {
	return err != nil && (isError[tls.AlertError](err) || strings.Contains(err.Error(), "tls: "))
}
