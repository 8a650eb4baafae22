package kafka

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"regexp"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/internal/consume"
)

// Config is what a Consumer needs. Brokers, Group, Topics or TopicPattern, Inbox,
// DB and one of Handler and BatchHandler are required.
type Config struct {
	// Brokers are host:port of some of the cluster's brokers.
	Brokers []string
	// Dialer has TLS, SASLMechanism, ClientID and how to connect; nil is plain
	// TCP. Its Timeout, 10 s by default, bounds the making of a connection;
	// its Deadline and TransactionalID are not used.
	Dialer *kafkago.Dialer
	// Group is the consumer group. Its members share the partitions; they
	// should have the same Topics and the same Inbox.Consumer.
	Group  string
	Topics []string
	// TopicPattern names topics beside Topics, or in their place: all whose whole
	// name it matches, but Kafka's internal ones and OnPoison's. Those that are
	// made later are found within seconds, and read as StartOffset says. The user
	// needs DESCRIBE on them.
	TopicPattern *regexp.Regexp
	// StartOffset is where a partition begins of which the group has not
	// committed an offset: kafka.FirstOffset, the default, or
	// kafka.LastOffset, which passes over everything that was published before
	// the partition was first assigned, and is committed then. It also says
	// where to go on when the partition ends before the committed offset.
	StartOffset int64

	// Inbox says who consumes and where it is remembered.
	Inbox *inbox.Inbox
	// Decoder reads the messages' attributes; the zero value knows those of the
	// relay.
	Decoder inbox.Decoder
	// DB is where the inbox is and what handlers write to: a *pgxpool.Pool.
	// Partitions are processed at the same time, each with a connection of the
	// pool; those that find none wait, which fails no message.
	DB inbox.Beginner
	// Handler processes one message in the transaction that remembers it.
	Handler inbox.Handler
	// BatchHandler, in Handler's place, processes up to BatchSize messages of
	// one partition in one transaction, in their order. It gets the messages
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
	// HandlerTimeout ends the handler's context; 30 s by default. A message
	// that took longer has failed. It begins with the handler: waiting for the
	// database before and after it is no failure of the message, and bounded by
	// 30 s more.
	HandlerTimeout time.Duration

	// Concurrency is the number of messages, or batches, of each partition that
	// are processed at the same time, each with a connection of DB's pool; 1 by
	// default, which processes a partition in the order of its offsets. With more,
	// messages with the same key are processed one after another in that order,
	// and those without a key in any. A message that waits for its next attempt
	// then holds back its key alone, until 10,000 messages behind it are
	// processed, or those that are not take FetchBytes. What was processed behind
	// a message that was not comes again when the partition changes hands, and is
	// recognised.
	Concurrency int

	// MaxAttempts is how often a message is tried before OnPoison; 5 by
	// default. Only the message's own failures count, see the package's
	// documentation.
	MaxAttempts int
	// Backoff is the pause between attempts, and between attempts to reach
	// brokers and database.
	Backoff Backoff
	// OnPoison says what becomes of a message that failed MaxAttempts times or
	// can never succeed; Park{} by default.
	OnPoison Poison

	// BreakerThreshold is how many messages in a row, without a success in
	// between, may use up their attempts with the same error until the consumer
	// takes it for somebody else's fault, a service that is away or a table that
	// is locked: then that message and those behind it are kept instead of being
	// put aside, and one is tried from time to time, by Backoff, until one
	// succeeds. 3 by default; negative puts all of them aside. The error is the
	// same when its SQLSTATE is, or its text without numbers, ids and quoted
	// values. inbox.Permanent errors do not count.
	BreakerThreshold int

	// CommitInterval is how often the offsets of what was processed are
	// committed; 1 s by default. After a crash the messages of that time come
	// again, and are recognised. They are committed at once when the group
	// rebalances and when Run ends.
	CommitInterval time.Duration
	// FetchBytes bounds what is read of a partition at a time, as the broker
	// sends it, that is compressed; 1 MiB by default. It is less where there are
	// many partitions, see MaxBytes. A single larger batch is read all the same.
	FetchBytes int
	// MaxBytes bounds what is in memory of all partitions: messages that are
	// being processed, the responses as the broker sent them, and what
	// decompressing them takes, which is done while they are read; 64 MiB by
	// default. A quarter is for the messages; half of the rest is shared out
	// evenly among the assigned partitions, and each fetches up to half of its
	// share at a time; the other half is for batches that do not fit in a share,
	// for which partitions take turns. A batch that is larger than that is read
	// alone, and each partition has one message, however large.
	MaxBytes int
	// FetchWait is how long the broker waits for a message before it answers
	// that there is none; 1 s by default.
	FetchWait time.Duration
	// Rack is where this process runs, in the brokers' own words (broker.rack),
	// such as an availability zone: a partition is then read from a replica
	// there, if the brokers have a replica.selector.class; by default from its
	// leader.
	Rack string
	// SessionTimeout is how long the group waits for a member that says
	// nothing, before it gives its partitions to the others; 45 s by default.
	// HeartbeatInterval is how often a member says something; 3 s by default,
	// 500 ms with CooperativeSticky: it is how long a partition waits that goes
	// from one member to another.
	SessionTimeout, HeartbeatInterval time.Duration
	// RebalanceTimeout is how long the group waits for members that still
	// process a message, before it goes on without them; HandlerTimeout and
	// 30 s more by default.
	RebalanceTimeout time.Duration
	// InstanceID makes this process a static member of the group
	// (group.instance.id): a unique name that it has again after a restart, such
	// as that of a StatefulSet's pod. It does not leave the group when Run ends;
	// where it is back within SessionTimeout it has its partitions again, and the
	// group does not rebalance. While it is away they wait. Run returns an error
	// when another process joins with the same one. Kafka 2.3 or newer.
	InstanceID string
	// GroupBalancers assign the partitions; range and roundrobin by default,
	// which the consumers of most languages have too. CooperativeSticky alone
	// has members go on with their partitions during rebalances.
	GroupBalancers []kafkago.GroupBalancer

	// KeepPruned has Run remove ids that are older than the inbox's retention, as
	// Inbox.KeepPruned does: once an hour, in one process at a time.
	KeepPruned bool

	// StopTimeout is how long Run waits for handlers when its context ends;
	// then theirs end. HandlerTimeout by default.
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

// Poison is what becomes of a message that cannot be processed: Park or
// DeadLetter.
type Poison interface {
	check(*Config) error
}

// Park keeps the message in the inbox's database; package parked shows such
// messages and retries them.
type Park struct{}

func (Park) check(*Config) error { return nil }

// DeadLetter publishes the message to another topic, with its key, its value
// and all its headers, and with headers that say what failed (HeaderError and
// the others). The message's offset is committed after all in-sync replicas
// have acknowledged that. As long as they do not (the topic is missing, the
// broker away), the partition waits and publishing is tried again.
type DeadLetter struct {
	Topic string
}

func (d DeadLetter) check(c *Config) error {
	switch {
	case d.Topic == "":
		return errors.New("OnPoison: DeadLetter.Topic is missing")
	case slices.Contains(c.Topics, d.Topic):
		return fmt.Errorf("OnPoison: DeadLetter.Topic %q is one of Topics: a dead letter would come back for ever", d.Topic)
	}
	return nil
}

// withDefaults fills in what is zero.
func (c Config) withDefaults() Config {
	c.BatchSize = orDefault(c.BatchSize, 100)
	c.HandlerTimeout = orDefault(c.HandlerTimeout, 30*time.Second)
	c.MaxAttempts = orDefault(c.MaxAttempts, 5)
	c.Concurrency = orDefault(c.Concurrency, 1)
	c.BreakerThreshold = orDefault(c.BreakerThreshold, consume.BreakerThreshold)
	c.Backoff = c.Backoff.WithDefaults()
	c.StartOffset = orDefault(c.StartOffset, kafkago.FirstOffset)
	c.CommitInterval = orDefault(c.CommitInterval, time.Second)
	c.FetchBytes = orDefault(c.FetchBytes, 1<<20)
	c.MaxBytes = orDefault(c.MaxBytes, 64<<20)
	c.FetchWait = orDefault(c.FetchWait, time.Second)
	c.SessionTimeout = orDefault(c.SessionTimeout, 45*time.Second)
	if c.cooperative() {
		// Who goes on meanwhile learns by a heartbeat that others wait.
		c.HeartbeatInterval = orDefault(c.HeartbeatInterval, 500*time.Millisecond)
	}
	c.HeartbeatInterval = orDefault(c.HeartbeatInterval, 3*time.Second)
	c.RebalanceTimeout = orDefault(c.RebalanceTimeout, c.HandlerTimeout+30*time.Second)
	c.StopTimeout = orDefault(c.StopTimeout, c.HandlerTimeout)
	if c.OnPoison == nil {
		c.OnPoison = Park{}
	}
	if c.Dialer == nil {
		c.Dialer = &kafkago.Dialer{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if len(c.GroupBalancers) == 0 {
		c.GroupBalancers = []kafkago.GroupBalancer{kafkago.RangeGroupBalancer{}, kafkago.RoundRobinGroupBalancer{}}
	}
	c.Brokers, c.Topics = slices.Clone(c.Brokers), slices.Clone(c.Topics)
	return c
}

// cooperative reports whether members go on with their partitions while the
// group rebalances.
func (c *Config) cooperative() bool {
	return len(c.GroupBalancers) > 0 && !slices.ContainsFunc(c.GroupBalancers, func(b kafkago.GroupBalancer) bool { return b.ProtocolName() != cooperativeSticky })
}

func orDefault[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// check reports everything that is wrong, joined into one error.
func (c *Config) check() error {
	var faults []error
	fault := func(format string, arguments ...any) {
		faults = append(faults, fmt.Errorf(format, arguments...))
	}
	if len(c.Brokers) == 0 {
		fault("Brokers: missing: name at least one host:port")
	}
	for i, broker := range c.Brokers {
		if host, port, err := net.SplitHostPort(broker); err != nil || host == "" || port == "" {
			fault("Brokers[%d]: %q is not host:port", i, broker)
		}
	}
	if c.Group == "" {
		fault("Group: missing: name the consumer group")
	}
	if len(c.Topics) == 0 && c.TopicPattern == nil {
		fault("Topics: missing: name at least one, or set TopicPattern")
	}
	if slices.Contains(c.Topics, "") {
		fault("Topics: one of them is empty")
	}
	if c.StartOffset != kafkago.FirstOffset && c.StartOffset != kafkago.LastOffset {
		fault("StartOffset: %d is neither kafka.FirstOffset nor kafka.LastOffset", c.StartOffset)
	}
	switch c.DB.(type) {
	case *pgx.Conn, pgx.Tx:
		fault("DB: %T is for one transaction at a time, and partitions are processed at the same time: set a *pgxpool.Pool", c.DB)
	}
	core := c.core()
	if err := core.Check(); err != nil {
		faults = append(faults, err)
	}
	if _, park := c.OnPoison.(Park); park && c.SQL != nil {
		fault("OnPoison: Park needs DB, a *pgxpool.Pool; with SQL set a DeadLetter")
	}
	c.checkNumbers(fault)
	if err := c.OnPoison.check(c); err != nil {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

func (c *Config) checkNumbers(fault func(string, ...any)) {
	for _, number := range [...]struct {
		name          string
		value, lowest int
	}{
		{"FetchBytes", c.FetchBytes, 1}, {"MaxBytes", c.MaxBytes, 1 << 20},
	} {
		if number.value < number.lowest || number.value > math.MaxInt32 {
			fault("%s: %d is not between %d and %d", number.name, number.value, number.lowest, math.MaxInt32)
		}
	}
	for _, d := range [...]struct {
		name  string
		value time.Duration
	}{
		{"HandlerTimeout", c.HandlerTimeout}, {"CommitInterval", c.CommitInterval}, {"FetchWait", c.FetchWait},
		{"SessionTimeout", c.SessionTimeout}, {"HeartbeatInterval", c.HeartbeatInterval},
		{"RebalanceTimeout", c.RebalanceTimeout}, {"StopTimeout", c.StopTimeout},
	} {
		if d.value < time.Millisecond || d.value > 24*time.Hour {
			fault("%s: %s is not between 1ms and 24h", d.name, d.value)
		}
	}
	if c.HeartbeatInterval >= c.SessionTimeout {
		fault("HeartbeatInterval: %s is not less than SessionTimeout, %s: a third of it is usual", c.HeartbeatInterval, c.SessionTimeout)
	}
	if c.RebalanceTimeout < c.HandlerTimeout {
		fault("RebalanceTimeout: %s is less than HandlerTimeout, %s: a rebalance would expel members that are at work", c.RebalanceTimeout, c.HandlerTimeout)
	}
}

// core is the part of the configuration that all consumers have.
func (c *Config) core() consume.Config {
	return consume.Config{
		Inbox: c.Inbox, DB: c.DB, Handler: c.Handler, BatchHandler: c.BatchHandler,
		SQL: c.SQL, SQLHandler: c.SQLHandler, SQLBatchHandler: c.SQLBatchHandler,
		Timeout: c.HandlerTimeout, Concurrency: c.Concurrency, BatchSize: c.BatchSize,
		MaxAttempts: c.MaxAttempts, Backoff: c.Backoff, BreakerThreshold: c.BreakerThreshold, KeepPruned: c.KeepPruned, Group: c.Group,
	}
}

// ahead is how many messages of a partition may be read before the first one of
// them is settled.
func (c *Config) ahead() int {
	switch {
	case c.Concurrency > 1:
		return maxAhead
	case c.BatchHandler != nil || c.SQLBatchHandler != nil:
		return 2 * c.BatchSize // one batch at work, and the next
	}
	return 2
}
