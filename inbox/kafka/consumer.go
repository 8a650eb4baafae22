package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/internal/consume"
)

// PanicError is a handler's panic. Its transaction was rolled back.
type PanicError = consume.PanicError

// Consumer is a member of a consumer group that processes messages through the
// inbox. Make it by New.
type Consumer struct {
	config   Config
	logger   *slog.Logger
	cluster  *cluster
	runner   *consume.Runner
	reach    *reach
	running  atomic.Bool
	current  atomic.Pointer[progress]
	assigned atomic.Int64
	// asked: how long the topics keep records was asked in this Run.
	asked bool
}

// New checks the configuration and fills in what it leaves open. It reaches
// neither the brokers nor the database. An error names every field that is
// wrong.
func New(config Config) (*Consumer, error) {
	config = config.withDefaults()
	if err := config.check(); err != nil {
		return nil, fmt.Errorf("inbox/kafka: %w", err)
	}
	topics := append(slices.Clone(config.Topics), deadLetterTopics(&config)...)
	logger := config.Logger.With("consumer", config.Inbox.Consumer, "group", config.Group)
	c := &Consumer{
		config:  config,
		reach:   newReach(&config),
		logger:  logger,
		cluster: newCluster(config.Brokers, config.Dialer, topics),
	}
	c.cluster.budget = newBudget(config.MaxBytes)
	core := config.core()
	core.Logger = logger
	if dead, ok := config.OnPoison.(DeadLetter); ok {
		core.DeadLetter = c.publisher(dead.Topic)
	}
	c.runner = consume.New(core)
	return c, nil
}

var errRunning = errors.New("inbox/kafka: Run is running already: make a Consumer for each")

// stopTime bounds each of the last commit and leaving.
const stopTime = 10 * time.Second

// Run consumes until ctx ends, whatever happens to the brokers or the database.
// When ctx ends it begins no further message, lets the running handlers finish,
// commits the offsets of what they did and leaves the group. It returns nil
// then, and an error when handlers had to be interrupted because they took
// longer than StopTimeout: their messages come again. It returns when
// everything that it started has ended; a handler that ignores its context
// delays it. Before ctx ends it returns only what can never work: settings that
// the brokers refuse.
//
// One Run at a time; another one may follow.
func (c *Consumer) Run(ctx context.Context) error {
	if !c.running.CompareAndSwap(false, true) {
		return errRunning
	}
	defer c.running.Store(false)
	defer c.cluster.close()
	c.asked = false
	m := &member{config: &c.config, cluster: c.cluster, crew: newCrew(c), topics: newTopics(&c.config, c.cluster)}
	c.current.Store(m.crew.progress)
	defer m.hangUp()
	c.reach.unknown()
	watching, unwatch := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { c.runner.Maintain(watching) })
	err := c.consume(ctx, m)
	unwatch()
	watch.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if left := m.leave(last); left != nil {
		c.logger.Warn("could not leave the group: it will miss this member after SessionTimeout", "error", left)
	}
	if err != nil {
		return fmt.Errorf("inbox/kafka: %w", err)
	}
	return nil
}

// consume takes part in one generation of the group after another.
func (c *Consumer) consume(ctx context.Context, m *member) error {
	var trouble trouble
	for failures := 0; ctx.Err() == nil; {
		joining, joined := m.crew.joining(ctx)
		assigned, err := m.join(joining)
		joined()
		if err != nil {
			m.crew.unjoined(ctx, err)
		}
		switch {
		case err == nil:
			failures = 0
			trouble.over(c.logger, "a member of the group again")
			c.reach.group(true)
			if err := c.serve(ctx, m, assigned); err != nil {
				return err
			}
			if m.crew.fatal != nil {
				return m.crew.fatal
			}
		case ctx.Err() != nil:
		case errors.Is(err, kafkago.InvalidSessionTimeout), errors.Is(err, kafkago.InvalidGroupId), errors.Is(err, kafkago.FencedInstanceID):
			return err
		case passing(err) && failures < 5:
			// Somebody else came or went meanwhile, or the coordinator has just
			// started: nothing to talk about.
			failures++
			if failures > 1 {
				c.pause(ctx, failures-1)
			}
		default:
			failures++
			c.reach.group(false)
			trouble.begins(c.logger, "cannot join the group; trying again", err)
			c.pause(ctx, failures)
		}
	}
	return m.crew.disband(ctx)
}

// Pause stops beginning messages: those of some topics, or without any, all.
// Handlers that run finish. The consumer stays a member of its group and keeps
// its partitions; it reads ahead and stops when it has as much as it may. It may
// be called at any time, also before Run.
func (c *Consumer) Pause(topics ...string) { c.runner.Pause(topics...) }

// Resume ends what Pause began for the same topics; without any it ends all
// pauses.
func (c *Consumer) Resume(topics ...string) { c.runner.Resume(topics...) }

// decode returns a record as a message.
func (c *Consumer) decode(p partitionID, r record) *consume.Item {
	item := &consume.Item{Delivery: r, Message: inbox.Message{
		Topic: p.topic, Key: r.key, Payload: r.value,
		Source: inbox.KafkaSource(p.topic, p.id, r.offset), ReceivedAt: time.Now(),
	}}
	headers := make([]inbox.Header, len(r.headers))
	for i, h := range r.headers {
		headers[i] = inbox.Header{Name: h.Key, Value: h.Value}
	}
	c.config.Decoder.Kafka(&item.Message, headers)
	if item.Time.IsZero() {
		item.Time = r.time
	}
	return item
}
