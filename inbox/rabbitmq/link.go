package rabbitmq

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Bounds of talks with the broker, none of which knows a context.
const (
	dialTimeout = 15 * time.Second
	// talkTimeout is for one request and its answer on an open connection.
	talkTimeout = 15 * time.Second
	// writeTimeout is how long the broker may take no byte at all before the
	// connection counts as stalled: without it a stalled socket would hang
	// every acknowledgement for good, and the heartbeats too.
	writeTimeout = 10 * time.Second
	// heartbeat is how often each side is heard of when it has nothing to say,
	// unless the URL says otherwise.
	heartbeat = 10 * time.Second
)

// boundedConn bounds every write to the socket, below TLS: a TLS connection is
// broken for good once a write of its own has timed out.
type boundedConn struct {
	net.Conn
	// patient says that the broker asked for patience, so that silence is no
	// stall.
	patient func() bool
}

// Write goes on for as long as bytes move or the broker asked for patience.
func (c *boundedConn) Write(p []byte) (int, error) {
	written := 0
	for {
		if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(p[written:])
		written += n
		timeout, _ := errors.AsType[net.Error](err)
		switch {
		case err == nil:
			return written, nil
		case timeout == nil || !timeout.Timeout():
			return written, err
		case n == 0 && !c.patient():
			return written, fmt.Errorf("the broker took no byte for %s: %w", writeTimeout, err)
		}
	}
}

// link is one connection.
type link struct {
	address    string
	connection *amqp.Connection
	socket     net.Conn
	blocked    *atomic.Bool
	// gone yields the reason of the connection's end, if it has one, and is
	// closed then.
	gone chan *amqp.Error
	// watched is closed when the goroutine that follows connection.blocked has
	// ended.
	watched chan struct{}
}

// parseURL is amqp.ParseURI with errors that show no part of the URL: a
// password with a reserved character ends up anywhere in url.Parse's.
func parseURL(text string) (amqp.URI, error) {
	if !strings.HasPrefix(text, "amqp://") && !strings.HasPrefix(text, "amqps://") {
		return amqp.URI{}, errors.New("does not begin with amqp:// or amqps://")
	}
	uri, err := amqp.ParseURI(text)
	if err != nil {
		return amqp.URI{}, errors.New("is not an AMQP URL: write amqp://user:password@host:5672/vhost, with reserved characters (such as / ? # @ : % and space) in user, password and vhost percent-encoded")
	}
	return uri, nil
}

// connect dials, encrypts and authenticates, and returns within dialTimeout.
func connect(ctx context.Context, url, name string, security *tls.Config) (*link, error) {
	uri, err := parseURL(url)
	if err != nil {
		return nil, fmt.Errorf("RabbitMQ's URL %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	l := &link{
		address: net.JoinHostPort(uri.Host, fmt.Sprint(uri.Port)),
		blocked: new(atomic.Bool), gone: make(chan *amqp.Error, 1), watched: make(chan struct{}),
	}
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(name)
	config := amqp.Config{
		Heartbeat:       heartbeat,
		Locale:          "en_US",
		Properties:      properties,
		TLSClientConfig: security.Clone(), // amqp091 writes to it
	}
	var stop func() bool
	config.Dial = func(network, address string) (net.Conn, error) {
		var dialer net.Dialer
		socket, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		l.socket = socket
		// amqp091 knows no context: closing the socket ends the handshake.
		stop = context.AfterFunc(ctx, func() { _ = socket.Close() })
		// Cleared by amqp091 when the connection is open.
		deadline, _ := ctx.Deadline()
		if err := socket.SetReadDeadline(deadline); err != nil {
			_ = socket.Close()
			return nil, err
		}
		return &boundedConn{Conn: socket, patient: l.blocked.Load}, nil
	}
	l.connection, err = amqp.DialConfig(url, config)
	if stop != nil && !stop() && err == nil {
		_ = l.connection.CloseDeadline(time.Now().Add(time.Second))
		err = ctx.Err()
	}
	if err != nil {
		if l.socket != nil {
			_ = l.socket.Close()
		}
		return nil, explain(ctx, l.address, uri, err)
	}
	l.connection.NotifyClose(l.gone)
	blocks := l.connection.NotifyBlocked(make(chan amqp.Blocking, 8))
	go func() {
		defer close(l.watched)
		for b := range blocks {
			l.blocked.Store(b.Active)
		}
	}()
	return l, nil
}

// talk runs a request that knows no context: when its answer does not come in
// time the socket is closed, which ends the request.
func (l *link) talk(request func() error) error {
	timer := time.AfterFunc(talkTimeout, func() { _ = l.socket.Close() })
	defer timer.Stop()
	return request()
}

// close ends the connection, politely if the broker answers soon, and waits
// for the link's goroutine.
func (l *link) close() {
	// An error only says that it was closed already or did not answer.
	_ = l.connection.CloseDeadline(time.Now().Add(2 * time.Second))
	_ = l.socket.Close()
	<-l.watched
}

// explain says why the broker did not let us in.
func explain(ctx context.Context, address string, uri amqp.URI, err error) error {
	hint := ""
	e, _ := errors.AsType[*amqp.Error](err)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("RabbitMQ at %s did not answer within %s", address, dialTimeout)
	case isError[tls.RecordHeaderError](err):
		hint = ": the port does not speak TLS; use amqp:// or RabbitMQ's TLS port (5671)"
	case isError[x509.UnknownAuthorityError](err):
		hint = ": the broker's certificate is signed by an authority that is not trusted; set TLS.RootCAs to its CA"
	case isError[x509.HostnameError](err):
		hint = ": the broker's certificate is for another name; set TLS.ServerName"
	case errors.Is(err, amqp.ErrVhost), e != nil && e.Code == amqp.NotAllowed:
		hint = fmt.Sprintf(": user %q cannot use virtual host %q: create it and grant permissions (rabbitmqctl add_vhost, set_permissions)", uri.Username, uri.Vhost)
	case errors.Is(err, amqp.ErrCredentials), e != nil && e.Code == amqp.AccessRefused:
		hint = fmt.Sprintf(": the connection was closed when user %q logged in: check user name and password, and that the port is an AMQP port (with amqps:// if it expects TLS; the user guest may only connect from the broker's own host)", uri.Username)
	}
	return fmt.Errorf("RabbitMQ at %s%s: %w", address, hint, err)
}

func isError[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}
