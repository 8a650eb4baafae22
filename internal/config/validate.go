package config

import (
	"errors"
	"maps"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/setting"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

const maxConnections = 10_000

// validate reports every value that has the right type and yet cannot work, and
// compiles what has to be.
func (d *document) validate(c *Config) {
	d.report("outbox", c.Outbox.Validate())
	d.validateDatabase(c)
	d.validateInbox(c)
	d.validateSinks(c)
	brokers := make(map[string]route.Broker, len(c.Sinks))
	for name, sink := range c.Sinks {
		brokers[name] = sink.Broker()
	}
	var err error
	c.table, err = route.Compile(c.Routes, brokers)
	d.report("", err)
	d.report("failures", c.Failures.Validate())
	c.copies, err = c.Failures.DeadLetter.Compile(brokers)
	d.report("", err)
	d.report("headers", setting.OneOf("", c.Headers, sinks.StylePlain, sinks.StyleCloudEvents, sinks.StyleDebezium))
	if _, err := url.Parse(c.Source); err != nil || c.Source == "" || strings.ContainsFunc(c.Source, isSpaceOrControl) {
		d.errorf("source", "%s is not a URI; CloudEvents wants one, such as /outbox or https://example.com/orders", d.show("source", c.Source))
	}
	d.report("http", c.HTTP.Validate())
	d.report("log.level", setting.OneOf("", c.Log.Level, "debug", "info", "warn", "error"))
	d.report("log.format", setting.OneOf("", c.Log.Format, "auto", "text", "json"))
	d.report("shutdown_timeout", setting.Between("", c.ShutdownTimeout, 0, 24*time.Hour))
}

func (d *document) validateDatabase(c *Config) {
	const connections = "database.max_connections"
	d.report(connections, setting.Between("", c.Database.MaxConnections, 1, maxConnections))
	if need := c.Outbox.Workers + 1; c.Database.MaxConnections < need && !d.failed("outbox.workers") {
		d.errorf(connections, "%d is too few for %d workers: each holds a connection while it publishes, and upkeep needs one more; set at least %d, or lower outbox.workers",
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

func (d *document) validateInbox(c *Config) {
	d.report("inbox", setting.Identifier("schema", c.Inbox.Schema, source.MaxSchemaName))
	d.report("inbox", setting.Identifier("table", c.Inbox.Table, source.MaxTableName))
	if c.Inbox.Schema == c.Outbox.Schema && c.Inbox.Table == c.Outbox.Table {
		d.errorf("inbox.table", "%s is the outbox's name too; give one of them another schema or table", d.show("inbox.table", c.Inbox.Table))
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

// report records what a package found wrong in its settings, which are at path.
func (d *document) report(path string, found error) {
	for _, err := range separate(found) {
		if shadowed, ok := errors.AsType[*route.ShadowedError](err); ok {
			d.errorf(shadowed.Path, "never matches: %s in line %d takes all of its rows; the first match wins, so put the narrower route first",
				shadowed.Earlier, d.line(shadowed.Earlier))
			continue
		}
		wrong, ok := errors.AsType[*setting.Error](err)
		if !ok {
			d.errorf(path, "%v", err)
			continue
		}
		at := join(path, wrong.Path)
		switch value := wrong.Value.(type) {
		case nil:
			d.errorf(at, "%s", wrong.Problem)
		case string:
			d.errorf(at, "%s%s", d.show(at, value), wrong.Problem)
		default:
			d.errorf(at, "%s%s", d.number(at, value), wrong.Problem)
		}
	}
}

// number shows a number or duration, which needs no quotes.
func (d *document) number(path string, value any) string {
	if _, ok := d.expanded[path]; ok {
		return d.show(path, "")
	}
	return setting.Format(value)
}

// sinkErrors records what the sink's own package found. Its messages begin with
// the path within the sink.
func (d *document) sinkErrors(path string, found error, secrets map[string]string) {
	for _, err := range separate(found) {
		at, message, found := strings.Cut(err.Error(), ": ")
		if !found || strings.ContainsAny(at, " \"'") {
			at, message = "", err.Error()
		}
		at = join(path, at)
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

func isSpaceOrControl(c rune) bool { return c <= ' ' || c == 0x7f }
