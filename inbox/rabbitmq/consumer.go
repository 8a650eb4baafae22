package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/outboxrelay/relay/inbox/internal/consume"
)

// PanicError is a handler's panic. Its transaction was rolled back.
type PanicError = consume.PanicError

// Consumer reads one queue and processes its messages through the inbox. Make
// it by New.
type Consumer struct {
	config    Config
	logger    *slog.Logger
	runner    *consume.Runner
	publisher chan *publisher // holds the one there is; whoever took it may use it
	running   atomic.Bool

	interruptions atomic.Int64
}

// New checks the configuration and fills in what it leaves open. It reaches
// neither the broker nor the database. An error names every field that is
// wrong, and shows no part of a URL.
func New(config Config) (*Consumer, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("inbox/rabbitmq: %w", err)
	}
	logger := config.Logger.With("consumer", config.Inbox.Consumer, "queue", config.Queue)
	c := &Consumer{
		config:    config,
		logger:    logger,
		publisher: make(chan *publisher, 1),
	}
	c.runner = consume.New(c.core())
	next := config.URLs
	c.publisher <- &publisher{connect: func(ctx context.Context) (*link, error) {
		url := next[0]
		l, err := connect(ctx, url, config.Name+" (dead letters)", config.TLS)
		if err != nil {
			next = append(next[1:len(next):len(next)], url)
		}
		return l, err
	}}
	return c, nil
}

// core is the configuration of what all consumers have.
func (c *Consumer) core() consume.Config {
	core := c.config.core()
	core.Logger = c.logger
	if dead, ok := c.config.OnPoison.(DeadLetter); ok {
		core.DeadLetter = c.deadLetter(dead)
	}
	return core
}

// errRunning refuses a second Run.
var errRunning = errors.New("inbox/rabbitmq: Run is running already: make a Consumer for each")

// Run consumes until ctx ends, whatever happens to the broker or the database:
// it reconnects, subscribes again and goes on. When ctx ends it starts no
// further message, lets the running handlers finish, acknowledges what they
// committed and gives the rest back to the queue. It returns nil then, and an
// error when handlers had to be interrupted because they took longer than
// StopTimeout: their messages were not processed, or will be recognised when
// they come again. It returns when everything that it started has ended; a
// handler that ignores its context delays it.
//
// One Run at a time; another one may follow.
func (c *Consumer) Run(ctx context.Context) error {
	if !c.running.CompareAndSwap(false, true) {
		return errRunning
	}
	defer c.running.Store(false)
	// Handlers outlive ctx, by StopTimeout at most.
	work, interrupt := context.WithCancelCause(context.WithoutCancel(ctx))
	defer interrupt(nil)
	var late *time.Timer
	var stopping sync.Mutex
	unwatch := context.AfterFunc(ctx, func() {
		stopping.Lock()
		defer stopping.Unlock()
		late = time.AfterFunc(c.config.StopTimeout, func() { interrupt(errLate) })
	})
	defer func() {
		unwatch()
		stopping.Lock()
		defer stopping.Unlock()
		if late != nil {
			late.Stop()
		}
	}()
	var watch sync.WaitGroup
	watch.Go(func() { c.runner.Maintain(ctx) })
	c.brokerUp(false)
	c.loop(ctx, work)
	watch.Wait() // loop returns when ctx has ended
	p := <-c.publisher
	p.close()
	c.publisher <- p
	if errors.Is(context.Cause(work), errLate) {
		return fmt.Errorf("inbox/rabbitmq: stopped after StopTimeout (%s): handlers had to be interrupted, their messages are left to the queue", c.config.StopTimeout)
	}
	return nil
}

// errLate is why handlers' contexts end.
var errLate = errors.New("the consumer stops and StopTimeout is over")

// loop subscribes again and again.
func (c *Consumer) loop(ctx, work context.Context) {
	urls := c.config.URLs
	failures, told := 0, ""
	for ctx.Err() == nil {
		s, err := c.subscribe(ctx, urls[0])
		if err == nil {
			c.logger.Info("consuming", "broker", s.link.address)
			c.brokerUp(true)
			told = ""
			var progress bool
			progress, err = s.run(ctx, work)
			if progress {
				failures = 0
			}
		}
		if ctx.Err() != nil {
			return
		}
		failures++
		c.interruptions.Add(1)
		c.brokerUp(errors.Is(err, consume.ErrDatabaseAway))
		pause := c.config.Backoff.Pause(failures)
		switch {
		case errors.Is(err, consume.ErrDatabaseAway):
			// Said when the outage began.
			c.awaitDatabase(ctx)
		case err.Error() != told:
			told = err.Error()
			c.logger.Warn("not consuming: trying again until it works", "error", err, "pause", pause)
		}
		urls = append(urls[1:len(urls):len(urls)], urls[0])
		consume.Sleep(ctx, pause)
	}
}

func (c *Consumer) brokerUp(up bool) {
	c.runner.Observer().BrokerUp(c.config.Inbox.Consumer, c.config.Queue, up)
}

// Pause stops beginning messages. Handlers that run finish. The subscription
// stays: the broker sends Prefetch messages, and takes them back when they are not
// acknowledged within its consumer_timeout, 30 minutes by default. It may be
// called at any time, also before Run.
func (c *Consumer) Pause() { c.runner.Pause() }

// Resume ends a Pause.
func (c *Consumer) Resume() { c.runner.Resume() }
