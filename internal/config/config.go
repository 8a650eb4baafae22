// Package config reads the relay's YAML file: strictly, with defaults, with
// environment variables expanded, and with every error at once, each with its
// path and line.
package config

import (
	"time"

	"github.com/outboxrelay/relay/internal/admin"
	"github.com/outboxrelay/relay/internal/delivery"
	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/kafka"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// Config is the whole file, with defaults filled in and secrets resolved.
type Config struct {
	Database        Database          `yaml:"database"`
	Outbox          source.Config     `yaml:"outbox"`
	Inbox           Inbox             `yaml:"inbox"`
	Sinks           map[string]Sink   `yaml:"sinks"`
	Routes          []route.Config    `yaml:"routes"`
	Failures        delivery.Failures `yaml:"failures"`
	Headers         sinks.Style       `yaml:"headers"`
	Source          string            `yaml:"source"`
	HTTP            admin.Config      `yaml:"http"`
	Log             Log               `yaml:"log"`
	ShutdownTimeout time.Duration     `yaml:"shutdown_timeout"`

	// table is Routes, and copies Failures.DeadLetter, compiled.
	table  *route.Table
	copies delivery.Copies
	// files holds the *_file that a secret was read from, by the path of the
	// secret. Loading clears the *_file fields themselves, so that whoever gets
	// the configuration sees one secret in one place; Print shows them again.
	files map[string]string
	// namesInbox: the file has section inbox.
	namesInbox bool
}

// NamesInbox reports whether the file has a section inbox, be it with nothing
// but defaults.
func (c *Config) NamesInbox() bool { return c.namesInbox }

// Table returns the compiled routes of a configuration that was loaded.
func (c *Config) Table() *route.Table { return c.table }

// Copies returns where copies of dead letters go.
func (c *Config) Copies() delivery.Copies { return c.copies }

// Database is where the outbox is.
type Database struct {
	// URL is a libpq connection string or URL; a secret. Empty means the PG*
	// environment variables.
	URL     string `yaml:"url"`
	URLFile string `yaml:"url_file"`
	// DirectURL bypasses a pooler, for LISTEN and replication; empty means URL.
	DirectURL     string `yaml:"direct_url"`
	DirectURLFile string `yaml:"direct_url_file"`
	// Password overrides the one in URL and DirectURL, so that the URL need not
	// be a secret.
	Password       string `yaml:"password"`
	PasswordFile   string `yaml:"password_file"`
	MaxConnections int    `yaml:"max_connections"`
}

// Inbox is the table of the consumers' library, for the commands that migrate
// and prune it.
type Inbox struct {
	Schema    string        `yaml:"schema"`
	Table     string        `yaml:"table"`
	Retention time.Duration `yaml:"retention"`
}

// Sink is one broker: exactly one of its fields is set.
type Sink struct {
	Kafka    *kafka.Config    `yaml:"kafka"`
	RabbitMQ *rabbitmq.Config `yaml:"rabbitmq"`
}

// Broker is what the sink is of; empty unless it is of exactly one.
func (s Sink) Broker() route.Broker {
	switch {
	case s.Kafka != nil && s.RabbitMQ == nil:
		return route.Kafka
	case s.RabbitMQ != nil && s.Kafka == nil:
		return route.RabbitMQ
	}
	return ""
}

// Log is how the relay logs.
type Log struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}
