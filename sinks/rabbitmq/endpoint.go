package rabbitmq

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/sinks"
)

// Timings of a connection where the URL does not say otherwise.
const (
	defaultDialTimeout = 10 * time.Second
	defaultHeartbeat   = 10 * time.Second
)

// endpoint is where the broker is and how to get in. It holds secrets.
type endpoint struct {
	address string
	tls     *tls.Config // nil: plain
	vhost   string
	user    string
	auth    []amqp.Authentication
	// heartbeat below one second leaves the interval to the broker.
	heartbeat   time.Duration
	dialTimeout time.Duration
	channelMax  uint16
}

// parseURL is amqp.ParseURI with errors that show no part of the URL: a
// password with a reserved character ends up anywhere in url.Parse's.
func parseURL(text string) (amqp.URI, error) {
	if !strings.HasPrefix(text, "amqp://") && !strings.HasPrefix(text, "amqps://") {
		return amqp.URI{}, errors.New("it does not begin with amqp:// or amqps://")
	}
	uri, err := amqp.ParseURI(text)
	if err != nil {
		return amqp.URI{}, errors.New("it is not an AMQP URL; write amqp://user:password@host:5672/vhost, with reserved characters (such as / ? # @ : % and space) in user, password and vhost percent-encoded")
	}
	return uri, nil
}

// newEndpoint reads url_file and the TLS files.
func newEndpoint(config Config) (endpoint, error) {
	text, field := config.URL, "url"
	if config.URLFile != "" {
		content, err := os.ReadFile(config.URLFile)
		if err != nil {
			return endpoint{}, fmt.Errorf("url_file: %w", err)
		}
		text, field = strings.TrimSpace(string(content)), "url_file: "+config.URLFile
	}
	uri, err := parseURL(text)
	if err != nil {
		return endpoint{}, fmt.Errorf("%s: %w", field, err)
	}
	security, err := transportSecurity(config.TLS, uri)
	if err != nil {
		return endpoint{}, err
	}
	auth, err := authentication(uri)
	if err != nil {
		return endpoint{}, fmt.Errorf("%s: %w", field, err)
	}
	target := endpoint{
		address:     net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)),
		tls:         security,
		vhost:       uri.Vhost,
		user:        uri.Username,
		auth:        auth,
		heartbeat:   defaultHeartbeat,
		dialTimeout: defaultDialTimeout,
		channelMax:  uri.ChannelMax,
	}
	if seconds, ok := urlHeartbeat(text); ok {
		target.heartbeat = seconds
	}
	if uri.ConnectionTimeout > 0 {
		target.dialTimeout = time.Duration(uri.ConnectionTimeout) * time.Millisecond
	}
	return target, nil
}

// urlHeartbeat returns the URL's heartbeat parameter, which amqp.URI hides.
func urlHeartbeat(text string) (time.Duration, bool) {
	u, err := url.Parse(text)
	if err != nil {
		return 0, false
	}
	seconds, err := strconv.ParseUint(u.Query().Get("heartbeat"), 10, 16)
	return time.Duration(seconds) * time.Second, err == nil
}

// transportSecurity returns nil for a plain connection. TLS is spoken when the
// URL says amqps or tls.enabled is set; the URL's own TLS parameters count
// where the tls mapping leaves a field empty.
func transportSecurity(t sinks.TLS, uri amqp.URI) (*tls.Config, error) {
	if uri.Scheme != "amqps" && !t.Enabled {
		return nil, nil
	}
	t.Enabled = true
	if t.CAFile == "" {
		t.CAFile = uri.CACertFile
	}
	if t.CertFile == "" && t.KeyFile == "" {
		t.CertFile, t.KeyFile = uri.CertFile, uri.KeyFile
	}
	if t.ServerName == "" {
		t.ServerName = uri.ServerName
	}
	if t.ServerName == "" {
		t.ServerName = uri.Host
	}
	return t.Config()
}

// authentication returns the SASL mechanisms that the URL asks for: PLAIN with
// its user and password unless auth_mechanism says otherwise.
func authentication(uri amqp.URI) ([]amqp.Authentication, error) {
	if len(uri.AuthMechanism) == 0 {
		return []amqp.Authentication{uri.PlainAuth()}, nil
	}
	var auth []amqp.Authentication
	for _, mechanism := range uri.AuthMechanism {
		switch strings.ToUpper(mechanism) {
		case "PLAIN":
			auth = append(auth, uri.PlainAuth())
		case "AMQPLAIN":
			auth = append(auth, uri.AMQPlainAuth())
		case "EXTERNAL":
			auth = append(auth, &amqp.ExternalAuth{})
		default:
			return nil, fmt.Errorf("auth_mechanism %q is not one of plain, amqplain, external", mechanism)
		}
	}
	return auth, nil
}
