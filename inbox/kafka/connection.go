package kafka

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
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
		return 13, true // fetcher.request
	case protocol.ListOffsets:
		return 5, true
	case protocol.Metadata:
		return 12, true // cluster.ask
	case protocol.OffsetCommit:
		return 7, true
	case protocol.OffsetFetch, protocol.JoinGroup:
		return 5, true
	case protocol.FindCoordinator:
		return 2, true
	case protocol.SyncGroup, protocol.DescribeConfigs:
		return 3, true
	case protocol.Heartbeat:
		return 3, true // member.heartbeat
	case protocol.LeaveGroup:
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
	clientID string
	// correlation numbers the requests of exchange.
	correlation int32
	broken      bool
	// expires is when the broker is about to want new authentication, zero for
	// never: it hangs up on a request that comes later.
	expires time.Time
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
	c = &connection{address: address, clientID: dialer.ClientID, protocol: protocol.NewConn(stream, dialer.ClientID)}
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

// setVersion has kafka-go's encoding use another version.
func (c *connection) setVersion(key protocol.ApiKey, version int16) {
	c.versions[key] = version
	c.protocol.SetVersions(c.versions)
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
		if lifetime := time.Duration(response.SessionLifetimeMs) * time.Millisecond; lifetime > 0 {
			c.expires = time.Now().Add(lifetime / 5 * 4)
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
func (c *connection) roundTrip(ctx context.Context, limit time.Duration, request protocol.Message) (response protocol.Message, err error) {
	err = c.talk(ctx, limit, request.ApiKey(), func() error {
		response, err = c.protocol.RoundTrip(request)
		return err
	})
	return response, err
}

// exchange is roundTrip for what kafka-go does not encode: body is the request
// in a version that the broker knows. The response's size is admitted, which
// may take its time, before it is read.
func (c *connection) exchange(ctx context.Context, limit time.Duration, key protocol.ApiKey, version int16, body []byte, admit func(size int) error) (response []byte, err error) {
	err = c.talk(ctx, limit, key, func() error {
		c.correlation++
		request := appendInt32(make([]byte, 0, 64+len(body)), 0)
		request = appendInt16(request, int16(key)) //nolint:gosec // there are few
		request = appendInt16(request, version)
		request = appendInt32(request, c.correlation)
		request = appendString(request, c.clientID)
		flexible := isFlexible(key, version)
		if flexible {
			request = append(request, 0) // no tags
		}
		request = append(request, body...)
		binary.BigEndian.PutUint32(request, uint32(len(request)-4)) //nolint:gosec // it is small
		if _, err := c.protocol.Write(request); err != nil {
			return err
		}
		var head [8]byte
		if _, err := io.ReadFull(c.protocol, head[:]); err != nil {
			return err
		}
		size := int(int32(binary.BigEndian.Uint32(head[:]))) - 4                                         //nolint:gosec // it is an int32
		if answered := int32(binary.BigEndian.Uint32(head[4:])); size < 0 || answered != c.correlation { //nolint:gosec // it is an int32
			return fmt.Errorf("the answer of %d bytes is to request %d, not to %d", size, answered, c.correlation)
		}
		if admit != nil {
			if err := admit(size); err != nil {
				return err
			}
			if err := c.protocol.SetDeadline(time.Now().Add(limit)); err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		if response, err = readAll(c.protocol, size); err != nil {
			return err
		}
		if flexible {
			r := reader{rest: response}
			r.tags()
			response, err = r.rest, r.err
		}
		return err
	})
	return response, err
}

// readAll reads n bytes. A number that is wrong takes no memory.
func readAll(r io.Reader, n int) ([]byte, error) {
	const trusted = 16 << 20
	if n <= trusted {
		b := make([]byte, n)
		_, err := io.ReadFull(r, b)
		return b, err
	}
	var b bytes.Buffer
	_, err := io.CopyN(&b, r, int64(n))
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return b.Bytes(), err
}

// talk has a request and its response within limit. After an error the
// connection is closed.
func (c *connection) talk(ctx context.Context, limit time.Duration, key protocol.ApiKey, exchange func() error) error {
	if c.broken {
		return fmt.Errorf("broker %s: %w", c.address, net.ErrClosed)
	}
	if _, ok := c.versions[key]; !ok {
		return fmt.Errorf("broker %s: %w: it has no version of %s that this consumer speaks", c.address, kafkago.UnsupportedVersion, key)
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	err := c.protocol.SetDeadline(time.Now().Add(limit))
	stop := context.AfterFunc(ctx, func() { _ = c.protocol.SetDeadline(time.Unix(1, 0)) })
	if err == nil {
		err = guard(exchange)
	}
	// Cut off by the context just after the answer: the deadline stays.
	cut := !stop()
	if err != nil || cut {
		c.close()
	}
	if err != nil {
		if cut {
			return context.Cause(ctx)
		}
		return fmt.Errorf("broker %s: %s: %w", c.address, key, err)
	}
	return nil
}

// guard makes an error of a panic: what a broker sends must not end the process.
func guard(decode func() error) (err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("what the broker sent cannot be decoded: %v", panicked)
		}
	}()
	return decode()
}

// isFlexible reports whether a version's header and body have tagged fields.
func isFlexible(key protocol.ApiKey, version int16) bool {
	return key == protocol.Metadata && version >= 9 || key == protocol.Fetch && version >= 12
}

// usable reports whether a connection, which may be nil, can have another
// request. One that is not is closed. Where the broker limits for how long
// authentication lasts (connections.max.reauth.ms) a new connection is as good
// as authenticating again, and needs no other code.
func (c *connection) usable() bool {
	if c == nil || c.broken {
		return false
	}
	if !c.expires.IsZero() && time.Now().After(c.expires) {
		c.close()
	}
	return !c.broken
}

func (c *connection) close() {
	c.broken = true
	_ = c.protocol.Close()
}
