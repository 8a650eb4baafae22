package rabbitmq

import (
	"errors"
	"fmt"

	"github.com/outboxrelay/relay/sinks"
)

// The values of Config.Order.
const (
	OrderStrict    = "strict"
	OrderPipelined = "pipelined"
)

// Config is a RabbitMQ sink as the configuration file has it.
type Config struct {
	// URL is amqp:// or amqps://, with user and password; a secret.
	URL     string `yaml:"url"`
	URLFile string `yaml:"url_file"`
	// Exchange is used where the route names none; empty is the default
	// exchange, which routes to the queue named by the routing key.
	Exchange string `yaml:"exchange"`
	// Mandatory makes an unroutable message a failure instead of a loss.
	Mandatory  bool `yaml:"mandatory"`
	Persistent bool `yaml:"persistent"`
	// Order is strict (one unconfirmed message per key) or pipelined.
	Order string `yaml:"order"`
	// MaxInFlight is the number of messages of one exchange that await their
	// confirm at most.
	MaxInFlight int       `yaml:"max_in_flight"`
	TLS         sinks.TLS `yaml:"tls"`
}

// Defaults returns the configuration that an empty mapping stands for.
func Defaults() Config {
	return Config{Mandatory: true, Persistent: true, Order: OrderStrict, MaxInFlight: 1000}
}

// maxWindow keeps the window's memory within reason; beyond some thousands a
// larger window gains nothing.
const maxWindow = 65535

// Validate reports everything that is wrong with the configuration, joined
// into one error, each beginning with the field's path. It reads no file and
// shows no part of the URL.
func (c Config) Validate() error {
	var faults []error
	switch {
	case c.URL == "" && c.URLFile == "":
		faults = append(faults, errors.New("url: missing; write amqp://user:password@host:5672/vhost, or set url_file"))
	case c.URL != "" && c.URLFile != "":
		faults = append(faults, errors.New("url_file: url is set too; set one of them"))
	case c.URL != "":
		if _, err := parseURL(c.URL); err != nil {
			faults = append(faults, fmt.Errorf("url: %w", err))
		}
	}
	if len(c.Exchange) > shortString {
		faults = append(faults, fmt.Errorf("exchange: the name has %d bytes, RabbitMQ allows %d", len(c.Exchange), shortString))
	}
	if c.Order != OrderStrict && c.Order != OrderPipelined {
		faults = append(faults, fmt.Errorf("order: %q is not one of %s, %s", c.Order, OrderStrict, OrderPipelined))
	}
	if c.MaxInFlight < 1 || c.MaxInFlight > maxWindow {
		faults = append(faults, fmt.Errorf("max_in_flight: %d is not between 1 and %d", c.MaxInFlight, maxWindow))
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		faults = append(faults, errors.New("tls: cert_file and key_file go together: set both or neither"))
	}
	return errors.Join(faults...)
}
