package rabbitmq

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/inbox"
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
	// at most. 20 for each of Concurrency, or twice BatchSize, by default; at
	// most 65535.
	Prefetch int
	// Concurrency is the number of messages, or batches, that are processed at
	// the same time; 1 by default. Messages with the same key are processed
	// one after another in the order of their arrival, whatever it is; those
	// without a key in any order if it is more than 1.
	Concurrency int

	// MaxAttempts is how often a message is tried before OnPoison; 5 by
	// default. Only the message's own failures count, see the package's
	// documentation.
	MaxAttempts int
	// Backoff is the pause between attempts, and between attempts to reach the
	// broker or the database.
	Backoff Backoff
	// Retry says where a message waits for its next attempt; RetryInPlace by
	// default.
	Retry Retry
	// OnPoison says what becomes of a message that failed MaxAttempts times or
	// can never succeed; Park{} by default.
	OnPoison Poison

	// StopTimeout is how long Run waits for handlers when its context ends;
	// then theirs end. 30 s by default.
	StopTimeout time.Duration
	// Logger gets every change of state and every failure, once; default
	// slog.Default().
	Logger *slog.Logger
}

// Backoff is a growing pause.
type Backoff struct {
	// Initial is the first pause (200 ms by default), Max the longest (30 s).
	Initial, Max time.Duration
	// Multiplier is the growth from one to the next; 2 by default.
	Multiplier float64
	// Jitter is the part of the pause by which it varies at random: 0.2, the
	// default, varies it by up to 20 % in either direction; negative is none.
	Jitter float64
}

// pause returns the nth pause, counted from one; random is in [0, 1).
func (b Backoff) pause(n int, random float64) time.Duration {
	d := float64(b.Initial) * math.Pow(b.Multiplier, float64(n-1))
	d = min(d, float64(b.Max)) // also for an infinite one
	d *= 1 + b.Jitter*(2*random-1)
	return time.Duration(d)
}

// Retry says where a failed message waits for its next attempt.
type Retry uint8

const (
	// RetryInPlace keeps the message, and with it the order: the later
	// messages of its key wait behind it, and so do other keys that share its
	// place in Concurrency.
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
	c.BatchSize = orDefault(c.BatchSize, 100)
	c.Concurrency = orDefault(c.Concurrency, 1)
	if c.Prefetch == 0 {
		c.Prefetch = 20 * c.Concurrency
		if c.BatchHandler != nil {
			c.Prefetch = 2 * c.BatchSize * c.Concurrency
		}
		c.Prefetch = min(c.Prefetch, maxPrefetch)
	}
	c.HandlerTimeout = orDefault(c.HandlerTimeout, 30*time.Second)
	c.MaxAttempts = orDefault(c.MaxAttempts, 5)
	c.StopTimeout = orDefault(c.StopTimeout, 30*time.Second)
	c.Backoff.Initial = orDefault(c.Backoff.Initial, 200*time.Millisecond)
	c.Backoff.Max = orDefault(c.Backoff.Max, 30*time.Second)
	c.Backoff.Multiplier = orDefault(c.Backoff.Multiplier, 2)
	c.Backoff.Jitter = max(orDefault(c.Backoff.Jitter, 0.2), 0)
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

func orDefault[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
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
	switch {
	case c.Inbox == nil:
		fault("Inbox: missing")
	case c.Inbox.Consumer == "":
		fault("Inbox.Consumer: missing: name the consumer")
	}
	if c.DB == nil {
		fault("DB: missing: set a *pgxpool.Pool")
	}
	if (c.Handler == nil) == (c.BatchHandler == nil) {
		fault("Handler, BatchHandler: set exactly one of them")
	}
	if err := c.Arguments.Validate(); err != nil {
		fault("Arguments: %w", err)
	}
	for _, number := range [...]struct {
		name           string
		value, highest int
	}{
		{"BatchSize", c.BatchSize, maxPrefetch}, {"Prefetch", c.Prefetch, maxPrefetch},
		{"Concurrency", c.Concurrency, maxPrefetch}, {"MaxAttempts", c.MaxAttempts, math.MaxInt32},
	} {
		if number.value < 1 || number.value > number.highest {
			fault("%s: %d is not between 1 and %d", number.name, number.value, number.highest)
		}
	}
	if c.StopTimeout < 0 {
		fault("StopTimeout: %s is negative", c.StopTimeout)
	}
	if b := c.Backoff; b.Initial < 0 || b.Max < b.Initial || b.Multiplier < 1 || b.Jitter > 1 {
		fault("Backoff: %+v: Initial must not be negative or more than Max, Multiplier not less than 1, Jitter not more than 1", b)
	}
	if c.Retry != RetryInPlace && c.Retry != RetryRequeue {
		fault("Retry: %d is not one of RetryInPlace, RetryRequeue", c.Retry)
	}
	if err := c.OnPoison.validate(); err != nil {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}
