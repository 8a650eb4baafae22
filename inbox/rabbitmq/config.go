package rabbitmq

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/internal/consume"
)

// Config is what a Consumer needs. URLs, Queue, Inbox, DB and one of Handler
// and BatchHandler are required.
type Config struct {
	// URLs are amqp:// or amqps:// addresses of the broker's nodes, tried in
	// turn: secrets. The parameters heartbeat, cacertfile, certfile, keyfile,
	// server_name_indication and auth_mechanism count.
	URLs []string
	// TLS is used with amqps://; nil trusts the system's authorities, or what
	// the URL's parameters name.
	TLS *tls.Config
	// Queue is read.
	Queue string
	// Declare, unless nil, is called on a channel of its own before each
	// subscription, also after the queue was deleted: the place to declare
	// queue and bindings. Without it the consumer waits until somebody else
	// does. A declaration that does not fit what exists is an error, which is
	// logged and tried again.
	Declare func(*amqp.Channel) error
	// Arguments go with the subscription: x-priority, or x-consumer-timeout
	// where the broker knows it. Exclusive refuses other consumers.
	Arguments amqp.Table
	Exclusive bool
	// Name is what RabbitMQ's tools show as the connection's name and as the
	// consumer's tag, to which something random is added; Inbox.Consumer by
	// default.
	Name string

	// Inbox says who consumes and where it is remembered.
	Inbox *inbox.Inbox
	// Decoder reads the messages' attributes; the zero value knows those of the
	// relay.
	Decoder inbox.Decoder
	// DB is where the inbox is and what handlers write to: a *pgxpool.Pool
	// with at least Concurrency connections.
	DB inbox.Beginner
	// Handler processes one message in the transaction that remembers it.
	Handler inbox.Handler
	// BatchHandler, in Handler's place, processes up to BatchSize messages in
	// one transaction, in the order of their arrival. It gets the messages
	// that were not seen before, and is not called when there are none. When
	// it fails each message is tried alone, so that one bad message costs its
	// neighbours nothing.
	BatchHandler inbox.BatchHandler
	// SQL, with SQLHandler or SQLBatchHandler, stands for DB with Handler or
	// BatchHandler where the application uses database/sql: a *sql.DB of any
	// PostgreSQL driver.
	SQL             inbox.SQLBeginner
	SQLHandler      inbox.SQLHandler
	SQLBatchHandler inbox.SQLBatchHandler
	// BatchSize bounds the batches; a batch takes what has arrived and never
	// waits. 100 by default.
	BatchSize int
	// HandlerTimeout ends the handler's context; 30 s by default, negative for
	// none. A message that took longer has failed. It begins with the handler:
	// waiting for the database before and after it is no failure of the
	// message, and bounded by 30 s more. RabbitMQ takes messages back that are
	// not acknowledged in time (30 minutes by default), so Prefetch messages
	// must not take longer.
	HandlerTimeout time.Duration

	// Prefetch is the number of unacknowledged messages that the broker sends
	// at most. 20 for each of Concurrency, or four times BatchSize, by default; at
	// most 65535.
	Prefetch int
	// Concurrency is the number of messages, or batches, that are processed at
	// the same time; 1 by default. Messages with the same key are processed
	// one after another in the order of their arrival, whatever it is; those
	// without a key in any order if it is more than 1. A message that waits for
	// its next attempt then holds back its key alone.
	Concurrency int

	// MaxAttempts is how often a message is tried before OnPoison; 5 by
	// default. Only the message's own failures count, see the package's
	// documentation.
	MaxAttempts int
	// Backoff is the pause between attempts, and between attempts to reach the
	// broker or the database.
	Backoff Backoff
	// BreakerThreshold is how many messages in a row, without a success in
	// between, may use up their attempts with the same error until the consumer
	// takes it for somebody else's fault, a service that is away or a table that
	// is locked: then that message and those behind it are kept instead of being
	// put aside, and one is tried from time to time, by Backoff, until one
	// succeeds. 3 by default; negative puts all of them aside. The error is the
	// same when its SQLSTATE is, or its text without numbers, ids and quoted
	// values. inbox.Permanent errors do not count.
	BreakerThreshold int
	// Retry says where a message waits for its next attempt; RetryInPlace by
	// default.
	Retry Retry
	// OnPoison says what becomes of a message that failed MaxAttempts times or
	// can never succeed; Park{} by default.
	OnPoison Poison

	// KeepPruned has Run remove ids that are older than the inbox's retention, as
	// Inbox.KeepPruned does: once an hour, in one process at a time.
	KeepPruned bool

	// StopTimeout is how long Run waits for handlers when its context ends;
	// then theirs end. 30 s by default.
	StopTimeout time.Duration
	// Logger gets every change of state and every failure, once; default
	// slog.Default().
	Logger *slog.Logger
}

// Backoff is a growing pause. Initial is the first one (200 ms by default), Max
// the longest (30 s), Multiplier the growth from one to the next (2). Jitter is
// the part by which it varies at random: 0.2, the default, varies it by up to
// 20 % in either direction; negative is none.
type Backoff = consume.Backoff

// Retry says where a failed message waits for its next attempt.
type Retry uint8

const (
	// RetryInPlace keeps the message, and with it the order: the later
	// messages of its key wait behind it, and with a Concurrency of 1 all others.
	RetryInPlace Retry = iota
	// RetryRequeue gives the message back to the queue after the pause, where
	// any consumer may take it. Later messages of its key overtake it.
	RetryRequeue
)

// Poison is what becomes of a message that cannot be processed: Park or
// DeadLetter.
type Poison interface {
	validate() error
}

// Park keeps the message in the inbox's database, see package inbox/parked,
// from where it can be looked at and tried again. While the database is away
// the message is kept and parking is tried again.
type Park struct{}

func (Park) validate() error { return nil }

// DeadLetter publishes the message to an exchange, with all that it had and
// with headers that say what failed (HeaderError and the others), and
// acknowledges it when the broker has confirmed that it is in a queue. As long
// as it is not (the exchange is missing, nothing is bound, the queue is full),
// the message is kept and publishing is tried again.
type DeadLetter struct {
	// Exchange is the exchange; empty is the default one, which routes to the
	// queue that RoutingKey names.
	Exchange string
	// RoutingKey is the message's own by default.
	RoutingKey string
}

func (d DeadLetter) validate() error {
	if d.Exchange == "" && d.RoutingKey == "" {
		return errors.New("OnPoison: DeadLetter names neither an exchange nor a routing key: set Exchange, or RoutingKey to the name of a queue")
	}
	return nil
}

// withDefaults fills in what is zero.
func (c Config) withDefaults() Config {
	c.BatchSize = cmp.Or(c.BatchSize, 100)
	c.Concurrency = cmp.Or(c.Concurrency, 1)
	if c.Prefetch == 0 {
		c.Prefetch = 20 * c.Concurrency
		if c.BatchHandler != nil || c.SQLBatchHandler != nil {
			c.Prefetch = 4 * c.BatchSize * c.Concurrency
		}
		c.Prefetch = min(c.Prefetch, maxPrefetch)
	}
	c.HandlerTimeout = cmp.Or(c.HandlerTimeout, 30*time.Second)
	c.MaxAttempts = cmp.Or(c.MaxAttempts, 5)
	c.BreakerThreshold = cmp.Or(c.BreakerThreshold, consume.BreakerThreshold)
	c.StopTimeout = cmp.Or(c.StopTimeout, 30*time.Second)
	c.Backoff = c.Backoff.WithDefaults()
	if c.OnPoison == nil {
		c.OnPoison = Park{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Name == "" && c.Inbox != nil {
		c.Name = c.Inbox.Consumer
	}
	return c
}

const (
	// maxPrefetch is what AMQP can say.
	maxPrefetch = math.MaxUint16
	// shortString is the size in bytes of AMQP's names at most.
	shortString = 255
)

// validate reports everything that is wrong, joined into one error.
func (c Config) validate() error {
	var faults []error
	fault := func(format string, arguments ...any) {
		faults = append(faults, fmt.Errorf(format, arguments...))
	}
	if len(c.URLs) == 0 {
		fault("URLs: missing: set at least one amqp:// address")
	}
	for i, url := range c.URLs {
		if _, err := parseURL(url); err != nil {
			fault("URLs[%d] %w", i, err)
		}
	}
	switch {
	case c.Queue == "":
		fault("Queue: missing")
	case len(c.Queue) > shortString:
		fault("Queue: the name has %d bytes, AMQP allows %d", len(c.Queue), shortString)
	}
	core := c.core()
	if err := core.Check(); err != nil {
		faults = append(faults, err)
	}
	if _, park := c.OnPoison.(Park); park && c.SQL != nil {
		fault("OnPoison: Park needs DB, a *pgxpool.Pool; with SQL set a DeadLetter")
	}
	if err := c.Arguments.Validate(); err != nil {
		fault("Arguments: %w", err)
	}
	if c.Prefetch < 1 || c.Prefetch > maxPrefetch {
		fault("Prefetch: %d is not between 1 and %d", c.Prefetch, maxPrefetch)
	}
	if c.StopTimeout < 0 {
		fault("StopTimeout: %s is negative", c.StopTimeout)
	}
	if c.Retry != RetryInPlace && c.Retry != RetryRequeue {
		fault("Retry: %d is not one of RetryInPlace, RetryRequeue", c.Retry)
	}
	if err := c.OnPoison.validate(); err != nil {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// core is the part of the configuration that all consumers have.
func (c *Config) core() consume.Config {
	return consume.Config{
		Inbox: c.Inbox, DB: c.DB, Handler: c.Handler, BatchHandler: c.BatchHandler,
		SQL: c.SQL, SQLHandler: c.SQLHandler, SQLBatchHandler: c.SQLBatchHandler,
		Timeout: c.HandlerTimeout, Concurrency: c.Concurrency, BatchSize: c.BatchSize,
		MaxAttempts: c.MaxAttempts, Backoff: c.Backoff, BreakerThreshold: c.BreakerThreshold, KeepPruned: c.KeepPruned, Patience: outagePatience,
	}
}
