// Package config reads the relay's YAML file: strictly, with defaults, with
// environment variables expanded, and with every error at once, each with its
// path and line.
package config

import (
	"time"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/kafka"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// Config is the whole file, with defaults filled in and secrets resolved.
type Config struct {
	Database        Database        `yaml:"database"`
	Outbox          Outbox          `yaml:"outbox"`
	Inbox           Inbox           `yaml:"inbox"`
	Sinks           map[string]Sink `yaml:"sinks"`
	Routes          []Route         `yaml:"routes"`
	Failures        Failures        `yaml:"failures"`
	Headers         sinks.Style     `yaml:"headers"`
	Source          string          `yaml:"source"`
	HTTP            HTTP            `yaml:"http"`
	Log             Log             `yaml:"log"`
	ShutdownTimeout time.Duration   `yaml:"shutdown_timeout"`

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

// Outbox is the table and how it is read.
type Outbox struct {
	Schema         string        `yaml:"schema"`
	Table          string        `yaml:"table"`
	Mode           string        `yaml:"mode"`
	Ordering       string        `yaml:"ordering"`
	OnPublished    string        `yaml:"on_published"`
	Retention      time.Duration `yaml:"retention"`
	BatchSize      int           `yaml:"batch_size"`
	Workers        int           `yaml:"workers"`
	PollInterval   time.Duration `yaml:"poll_interval"`
	Notify         bool          `yaml:"notify"`
	PublishTimeout time.Duration `yaml:"publish_timeout"`
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

// Route sends the rows that match to a sink.
type Route struct {
	Match Match `yaml:"match"`
	// Sink names an entry of sinks.
	Sink string `yaml:"sink"`
	// Destination is a template of {topic}, {type} and {key}.
	Destination string `yaml:"destination"`
	// Exchange overrides the sink's; RabbitMQ only.
	Exchange string `yaml:"exchange"`
	// OnFailure overrides failures.policy.
	OnFailure string `yaml:"on_failure"`
}

// Match holds globs; an empty one matches everything.
type Match struct {
	Topic string `yaml:"topic"`
	Type  string `yaml:"type"`
}

// Failures is what happens to a message that the broker refuses.
type Failures struct {
	Policy      string     `yaml:"policy"`
	MaxAttempts int        `yaml:"max_attempts"`
	Backoff     Backoff    `yaml:"backoff"`
	DeadLetter  DeadLetter `yaml:"dead_letter"`
}

// DeadLetter is where a copy of each message is published that a relay moves to
// the dead letters; an empty Sink turns that off.
type DeadLetter struct {
	Sink string `yaml:"sink"`
	// Destination is a template as in a route.
	Destination string `yaml:"destination"`
	Exchange    string `yaml:"exchange"`
}

// Backoff is the pause between attempts.
type Backoff struct {
	Initial    time.Duration `yaml:"initial"`
	Max        time.Duration `yaml:"max"`
	Multiplier float64       `yaml:"multiplier"`
	Jitter     float64       `yaml:"jitter"`
}

// HTTP is the listener of /livez, /readyz and /metrics; an empty Listen turns
// it off.
type HTTP struct {
	Listen string `yaml:"listen"`
	// Token, if set, is what /metrics and /debug/pprof ask for as a bearer token.
	Token     string  `yaml:"token"`
	TokenFile string  `yaml:"token_file"`
	TLS       HTTPTLS `yaml:"tls"`
	// Pprof serves profiles below /debug/pprof.
	Pprof bool `yaml:"pprof"`
}

// HTTPTLS makes the listener speak TLS; both files or neither.
type HTTPTLS struct {
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

// Log is how the relay logs.
type Log struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}
