package source

import (
	"errors"
	"time"

	"github.com/outboxrelay/relay/internal/setting"
)

// Config is the section outbox of the configuration file: the table and how it
// is read.
type Config struct {
	Schema      string      `yaml:"schema"`
	Table       string      `yaml:"table"`
	Mode        string      `yaml:"mode"`
	Ordering    Ordering    `yaml:"ordering"`
	OnPublished OnPublished `yaml:"on_published"`
	// Retention is how long rows are kept once they are marked; 0: for ever.
	Retention time.Duration `yaml:"retention"`
	// BatchSize is the number of rows in a claim at most, Workers that of the
	// claims under way.
	BatchSize int `yaml:"batch_size"`
	Workers   int `yaml:"workers"`
	// PollInterval is the longest pause between two claims.
	PollInterval time.Duration `yaml:"poll_interval"`
	// Notify wakes by LISTEN too.
	Notify bool `yaml:"notify"`
	// PublishTimeout is how long a claim is held open for the broker.
	PublishTimeout time.Duration `yaml:"publish_timeout"`
}

// Defaults returns the configuration that an empty mapping stands for.
func Defaults() Config {
	return Config{
		Schema:         "public",
		Table:          "outbox",
		Mode:           "poll",
		Ordering:       OrderKey,
		OnPublished:    Mark,
		Retention:      24 * time.Hour,
		BatchSize:      1000,
		Workers:        4,
		PollInterval:   100 * time.Millisecond,
		Notify:         true,
		PublishTimeout: 30 * time.Second,
	}
}

const (
	// MaxTableName leaves room for the suffixes of the tables and indexes that
	// belong to the outbox or inbox: a name has at most 63 bytes in PostgreSQL.
	MaxTableName = 43
	// MaxSchemaName is PostgreSQL's own bound.
	MaxSchemaName = 63

	maxWorkers   = 64
	maxBatchSize = 100_000
)

// Validate reports every mistake that shows without the database, as joined
// errors of type *setting.Error.
func (c Config) Validate() error {
	return errors.Join(
		setting.Identifier("schema", c.Schema, MaxSchemaName),
		setting.Identifier("table", c.Table, MaxTableName),
		available("mode", c.Mode, "follow", "use poll", "poll"),
		setting.OneOf("ordering", c.Ordering, OrderKey, OrderNone, OrderTotal),
		available("on_published", c.OnPublished, "keep", "use mark or delete", Mark, Delete),
		setting.Between("batch_size", c.BatchSize, 1, maxBatchSize),
		setting.Between("workers", c.Workers, 1, maxWorkers),
		setting.Between("poll_interval", c.PollInterval, time.Millisecond, time.Hour),
		setting.Between("publish_timeout", c.PublishTimeout, 100*time.Millisecond, 10*time.Minute),
	)
}

// available is setting.OneOf where the documentation has a value that this
// version does not do yet.
func available[T ~string](path string, value, notYet T, remedy string, known ...T) error {
	if value == notYet {
		return setting.Errorf(path, "%s is not available in this version; %s", value, remedy)
	}
	return setting.OneOf(path, value, known...)
}

// Options returns what a Claimer needs of the section.
func (c Config) Options() Options {
	return Options{
		Schema: c.Schema, Table: c.Table, Ordering: c.Ordering, OnPublished: c.OnPublished,
		BatchSize: c.BatchSize, PublishTimeout: c.PublishTimeout,
	}
}
