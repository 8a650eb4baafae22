package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/segmentio/kafka-go/sasl"
)

const (
	// dialTimeout bounds a connection's making, TLS and SASL included, unless
	// the Dialer has a Timeout.
	dialTimeout = 10 * time.Second
	// requestTimeout bounds a request that the broker answers at once.
	requestTimeout = 10 * time.Second
)

// highestVersion caps the protocol's versions at those that kafka-go encodes
// right. Its types for later ones lack the compact forms that these have, and
// for Heartbeat and LeaveGroup it takes the throttle time, which comes first
// from version 1 on, for the error: every answer looks like success.
func highestVersion(key protocol.ApiKey) (version int16, known bool) {
	switch key {
	case protocol.Produce:
		return 8, true
	case protocol.Fetch:
		return 11, true
	case protocol.ListOffsets:
		return 5, true
	case protocol.Metadata:
		return 8, true
	case protocol.OffsetCommit:
		return 7, true
	case protocol.OffsetFetch, protocol.JoinGroup:
		return 5, true
	case protocol.FindCoordinator:
		return 2, true
	case protocol.SyncGroup, protocol.DescribeConfigs:
		return 3, true
	case protocol.Heartbeat, protocol.LeaveGroup:
		return 0, true
	case protocol.SaslHandshake, protocol.SaslAuthenticate:
		return 1, true
	}
	return 0, false
}

// connection is an authenticated connection to one broker, for one request at
// a time.
type connection struct {
	address  string
	protocol *protocol.Conn
	versions map[protocol.ApiKey]int16
	broken   bool
}

// dial connects to host:port with the settings of the dialer.
func dial(ctx context.Context, dialer *kafkago.Dialer, address string) (*connection, error) {
	timeout := dialer.Timeout
	if timeout <= 0 {
		timeout = dialTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := open(ctx, dialer, address)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("connect to Kafka at %s: %w", address, err)
	}
	return c, nil
}

func open(ctx context.Context, dialer *kafkago.Dialer, address string) (c *connection, err error) {
	socket, err := dialSocket(ctx, dialer, address)
	if err != nil {
		return nil, err
	}
	// What comes next knows no context.
	stop := context.AfterFunc(ctx, func() { _ = socket.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	defer func() {
		if err != nil {
			_ = socket.Close()
		}
	}()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	stream := socket
	if dialer.TLS != nil {
		config := dialer.TLS.Clone()
		if config.ServerName == "" {
			config.ServerName = host
		}
		stream = tls.Client(socket, config)
	}
	c = &connection{address: address, protocol: protocol.NewConn(stream, dialer.ClientID)}
	if err := c.negotiate(); err != nil {
		if dialer.TLS == nil && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
			return nil, fmt.Errorf("%w: the broker hung up, which it does when it expects TLS: set Dialer.TLS", err)
		}
		return nil, err
	}
	if dialer.SASLMechanism != nil {
		number, err := strconv.Atoi(port)
		if err != nil {
			return nil, err
		}
		ctx := sasl.WithMetadata(ctx, &sasl.Metadata{Host: host, Port: number})
		if err := c.authenticate(ctx, dialer.SASLMechanism); err != nil {
			return nil, fmt.Errorf("SASL %s: %w", dialer.SASLMechanism.Name(), err)
		}
	}
	return c, nil
}

func dialSocket(ctx context.Context, dialer *kafkago.Dialer, address string) (net.Conn, error) {
	if dialer.Resolver != nil {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		found, err := dialer.Resolver.LookupHost(ctx, host)
		if err != nil {
			return nil, err
		}
		if len(found) > 0 {
			address = net.JoinHostPort(found[0], port)
			if _, _, err := net.SplitHostPort(found[0]); err == nil {
				address = found[0]
			}
		}
	}
	if dialer.DialFunc != nil {
		return dialer.DialFunc(ctx, "tcp", address)
	}
	socket := net.Dialer{LocalAddr: dialer.LocalAddr, FallbackDelay: dialer.FallbackDelay, KeepAlive: dialer.KeepAlive}
	return socket.DialContext(ctx, "tcp", address)
}

// negotiate learns which versions the broker speaks.
func (c *connection) negotiate() error {
	message, err := c.protocol.RoundTrip(&apiversions.Request{})
	if err != nil {
		return err
	}
	response := message.(*apiversions.Response)
	if response.ErrorCode != 0 {
		return kafkago.Error(response.ErrorCode)
	}
	c.versions = make(map[protocol.ApiKey]int16)
	for _, offered := range response.ApiKeys {
		key := protocol.ApiKey(offered.ApiKey)
		highest, known := highestVersion(key)
		if version := min(highest, offered.MaxVersion); known && version >= offered.MinVersion {
			c.versions[key] = version
		}
	}
	c.protocol.SetVersions(c.versions)
	return nil
}

func (c *connection) authenticate(ctx context.Context, mechanism sasl.Mechanism) error {
	message, err := c.protocol.RoundTrip(&saslhandshake.Request{Mechanism: mechanism.Name()})
	if err != nil {
		return err
	}
	if code := message.(*saslhandshake.Response).ErrorCode; code != 0 {
		return kafkago.Error(code)
	}
	session, state, err := mechanism.Start(ctx)
	if err != nil {
		return err
	}
	for {
		message, err := c.protocol.RoundTrip(&saslauthenticate.Request{AuthBytes: state})
		if err != nil {
			return err
		}
		response := message.(*saslauthenticate.Response)
		if response.ErrorCode != 0 {
			return fmt.Errorf("%w: %s", kafkago.Error(response.ErrorCode), response.ErrorMessage)
		}
		var done bool
		done, state, err = session.Next(ctx, response.AuthBytes)
		if err != nil || done {
			return err
		}
	}
}

// roundTrip sends a request and returns its response within limit. After an
// error the connection is closed.
func (c *connection) roundTrip(ctx context.Context, limit time.Duration, request protocol.Message) (protocol.Message, error) {
	if c.broken {
		return nil, fmt.Errorf("broker %s: %w", c.address, net.ErrClosed)
	}
	if _, ok := c.versions[request.ApiKey()]; !ok {
		return nil, fmt.Errorf("broker %s: %w: it has no version of %s that this consumer speaks", c.address, kafkago.UnsupportedVersion, request.ApiKey())
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	err := c.protocol.SetDeadline(time.Now().Add(limit))
	stop := context.AfterFunc(ctx, func() { _ = c.protocol.SetDeadline(time.Unix(1, 0)) })
	var response protocol.Message
	if err == nil {
		response, err = c.protocol.RoundTrip(request)
	}
	// Cut off by the context just after the answer: the deadline stays.
	cut := !stop()
	if err != nil || cut {
		c.close()
	}
	if err != nil {
		if cut {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("broker %s: %s: %w", c.address, request.ApiKey(), err)
	}
	return response, nil
}

func (c *connection) close() {
	c.broken = true
	_ = c.protocol.Close()
}
