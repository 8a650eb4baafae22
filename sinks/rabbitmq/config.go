package rabbitmq

import "github.com/outboxrelay/relay/sinks"

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
	// MaxInFlight is the number of messages that await their confirm at most.
	MaxInFlight int       `yaml:"max_in_flight"`
	TLS         sinks.TLS `yaml:"tls"`
}

// Defaults returns the configuration that an empty mapping stands for.
func Defaults() Config {
	return Config{Mandatory: true, Persistent: true, Order: "strict", MaxInFlight: 1000}
}
