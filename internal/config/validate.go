package config

import (
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/outboxrelay/relay/sinks"
)

// unavailable lists values that the schema has and this version does not do
// yet. A version that does deletes its line.
var unavailable = []struct{ key, value, remedy string }{
	{"mode", "follow", "use poll"},
	{"on_published", "keep", "use mark or delete"},
}

const (
	maxConnections = 10_000
	maxWorkers     = 64
	maxBatchSize   = 100_000
	// maxTableName leaves room for the suffixes of the tables and indexes that
	// belong to the outbox: a name has at most 63 bytes in PostgreSQL.
	maxTableName  = 43
	maxSchemaName = 63
)

// validate reports every value that has the right type and yet cannot work.
func (d *document) validate(c *Config) {
	d.validateDatabase(c)
	d.validateOutbox(c.Outbox)
	d.validateInbox(c)
	d.validateSinks(c)
	d.validateRoutes(c)
	d.validateFailures(c.Failures)
	d.validateDeadLetter(c.Failures.DeadLetter, c.Sinks)
	d.oneOf("headers", string(c.Headers), string(sinks.StylePlain), string(sinks.StyleCloudEvents), string(sinks.StyleDebezium))
	if _, err := url.Parse(c.Source); err != nil || c.Source == "" || strings.ContainsFunc(c.Source, isSpaceOrControl) {
		d.errorf("source", "%s is not a URI; CloudEvents wants one, such as /outbox or https://example.com/orders", d.show("source", c.Source))
	}
	d.validateHTTP(c.HTTP)
	d.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	d.oneOf("log.format", c.Log.Format, "auto", "text", "json")
	d.duration("shutdown_timeout", c.ShutdownTimeout, 0, 24*time.Hour)
}

func (d *document) validateDatabase(c *Config) {
	d.integer("database.max_connections", c.Database.MaxConnections, 1, maxConnections)
	if need := c.Outbox.Workers + 1; c.Database.MaxConnections < need && c.Outbox.Workers <= maxWorkers {
		d.errorf("database.max_connections", "%d is too few for %d workers: each holds a connection while it publishes, and upkeep needs one more; set at least %d, or lower outbox.workers",
			c.Database.MaxConnections, c.Outbox.Workers, need)
	}
	if !d.failed("database.url") {
		if _, err := c.Database.PoolConfig(); err != nil {
			d.errorf("database.url", "the connection string %v", err)
		}
	}
	if c.Database.DirectURL != "" && !d.failed("database.direct_url") {
		if _, err := c.Database.DirectConfig(); err != nil {
			d.errorf("database.direct_url", "the connection string %v", err)
		}
	}
}

func (d *document) validateOutbox(o Outbox) {
	d.identifier("outbox.schema", o.Schema, maxSchemaName)
	d.identifier("outbox.table", o.Table, maxTableName)
	d.oneOf("outbox.mode", o.Mode, "poll", "follow")
	d.oneOf("outbox.ordering", o.Ordering, "key", "none", "total")
	d.oneOf("outbox.on_published", o.OnPublished, "mark", "delete", "keep")
	d.integer("outbox.batch_size", o.BatchSize, 1, maxBatchSize)
	d.integer("outbox.workers", o.Workers, 1, maxWorkers)
	d.duration("outbox.poll_interval", o.PollInterval, time.Millisecond, time.Hour)
	d.duration("outbox.publish_timeout", o.PublishTimeout, 100*time.Millisecond, 10*time.Minute)
}

func (d *document) validateInbox(c *Config) {
	d.identifier("inbox.schema", c.Inbox.Schema, maxSchemaName)
	d.identifier("inbox.table", c.Inbox.Table, maxTableName)
	if c.Inbox.Schema == c.Outbox.Schema && c.Inbox.Table == c.Outbox.Table {
		d.errorf("inbox.table", "%s is the outbox's name too; give one of them another schema or table", d.show("inbox.table", c.Inbox.Table))
	}
}

func (d *document) validateFailures(f Failures) {
	d.oneOf("failures.policy", f.Policy, "park", "dead_letter", "skip")
	d.integer("failures.max_attempts", f.MaxAttempts, 1, 1_000_000)
	d.duration("failures.backoff.initial", f.Backoff.Initial, time.Millisecond, time.Hour)
	d.duration("failures.backoff.max", f.Backoff.Max, time.Millisecond, 24*time.Hour)
	if f.Backoff.Initial > f.Backoff.Max {
		d.errorf("failures.backoff.max", "%s is less than failures.backoff.initial, %s", f.Backoff.Max, f.Backoff.Initial)
	}
	if f.Backoff.Multiplier < 1 || f.Backoff.Multiplier > 100 {
		d.errorf("failures.backoff.multiplier", "%v is out of range; it must be between 1 and 100", f.Backoff.Multiplier)
	}
	if f.Backoff.Jitter < 0 || f.Backoff.Jitter > 1 {
		d.errorf("failures.backoff.jitter", "%v is out of range; it must be between 0 and 1", f.Backoff.Jitter)
	}
}

// sinkName allows what is readable as a metric's label and in a path.
var sinkName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

func (d *document) validateSinks(c *Config) {
	if len(c.Sinks) == 0 {
		d.errorf("sinks", "no sink is configured; add one, for example sinks: {main: {kafka: {brokers: [localhost:9092]}}}")
	}
	secrets := map[string]string{}
	eachSecret("", reflect.ValueOf(c), func(path string, value, _ reflect.Value) {
		if value.String() != "" {
			secrets[path] = value.String()
		}
	})
	for _, name := range slices.Sorted(maps.Keys(c.Sinks)) {
		path, sink := join("sinks", name), c.Sinks[name]
		if !sinkName.MatchString(name) {
			d.errorf(path, "a sink's name has letters, digits, '_', '-' and '.', at most 63, and begins with a letter or digit")
		}
		switch {
		case sink.Kafka != nil && sink.RabbitMQ != nil:
			d.errorf(path, "has both kafka and rabbitmq; give each a sink of its own")
		case sink.Kafka != nil:
			d.sinkErrors(join(path, "kafka"), sink.Kafka.Validate(), secrets)
		case sink.RabbitMQ != nil:
			d.sinkErrors(join(path, "rabbitmq"), sink.RabbitMQ.Validate(), secrets)
		default:
			d.errorf(path, "has no broker; give it kafka or rabbitmq")
		}
	}
}

// sinkErrors records what the sink's own package found. Its messages begin with
// the path within the sink.
func (d *document) sinkErrors(path string, found error, secrets map[string]string) {
	for _, err := range separate(found) {
		at, message, found := strings.Cut(err.Error(), ": ")
		if !found || strings.ContainsAny(at, " \"'") {
			at, message = "", err.Error()
		}
		at = strings.TrimSuffix(join(path, at), ".")
		d.errorf(at, "%s", d.censor(path, message, secrets))
	}
}

// separate undoes errors.Join.
func separate(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, one := range joined.Unwrap() {
		all = append(all, separate(one)...)
	}
	return all
}

// failed reports whether something is wrong at path or below it already.
func (d *document) failed(path string) bool {
	return slices.ContainsFunc(d.errors, func(e *Error) bool { return below(e.Path, path) || below(e.Path, path+twinSuffix) })
}

func (d *document) oneOf(path, value string, known ...string) {
	key := lastKey(path)
	available := slices.DeleteFunc(slices.Clone(known), func(word string) bool { return notYet(key, word) != "" })
	if remedy := notYet(key, value); remedy != "" {
		d.errorf(path, "%s is not available in this version; %s", value, remedy)
	} else if !slices.Contains(known, value) {
		d.errorf(path, "%s is not allowed; it must be %s", d.show(path, value), enumerate(available))
	}
}

// notYet returns the remedy for a value that this version does not do, "" for
// others.
func notYet(key, value string) string {
	for _, entry := range unavailable {
		if entry.key == key && entry.value == value {
			return entry.remedy
		}
	}
	return ""
}

func (d *document) integer(path string, value, least, most int) {
	if value < least || value > most {
		d.errorf(path, "%s is out of range; it must be between %d and %d", d.number(path, value), least, most)
	}
}

func (d *document) duration(path string, value, least, most time.Duration) {
	if value < least || value > most {
		d.errorf(path, "%s is out of range; it must be between %s and %s", d.number(path, formatDuration(value)), formatDuration(least), formatDuration(most))
	}
}

// number shows a number or duration, which needs no quotes.
func (d *document) number(path string, value any) string {
	if _, ok := d.expanded[path]; ok {
		return d.show(path, "")
	}
	return fmt.Sprint(value)
}

func (d *document) identifier(path, name string, longest int) {
	switch {
	case name == "":
		d.errorf(path, "is empty; leave the key out for the default")
	case strings.ContainsRune(name, 0) || !utf8.ValidString(name):
		d.errorf(path, "must be UTF-8 without NUL")
	case len(name) > longest:
		d.errorf(path, "%s has %d bytes; at most %d fit", d.show(path, name), len(name), longest)
	}
}

func isSpaceOrControl(c rune) bool { return c <= ' ' || c == 0x7f }
