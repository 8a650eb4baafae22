package rabbitmq

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// connection is one connection to the broker, with its channels. Its owner makes a
// new one when it has ended.
type connection struct {
	target endpoint
	window int
	logger *slog.Logger
	amqp   *amqp.Connection
	stream *stream
	// changed wakes calls after anything that they may wait for.
	changed *waiters
	// block is why the broker does not read from us, nil while it does.
	block *blockState
	// bound is the size of the largest payload that the broker takes, nil until it
	// refused one. It says so nowhere else.
	bound atomic.Pointer[sizeBound]
	// done is closed when the connection has ended; err is set before.
	done chan struct{}
	err  error

	mu       sync.Mutex
	channels map[string]*opening
	closing  bool

	// working counts the connection's goroutines; start adds to it.
	working sync.WaitGroup
}

// sizeBound is what the broker said, and until when that is believed: it can be
// changed while the broker runs.
type sizeBound struct {
	limit int64
	until time.Time
}

const believeBound = time.Minute

// blockState is shared with the stream, which exists before the connection.
type blockState struct{ reason atomic.Pointer[string] }

func (b *blockState) active() bool { return b.reason.Load() != nil }

// opening is a channel, or the attempt to open one that several calls wait for.
type opening struct {
	ready   chan struct{}
	channel *channel // valid when ready is closed and err is nil
	err     error
}

// connect makes a connection.
func connect(ctx context.Context, target endpoint, window int, logger *slog.Logger) (*connection, error) {
	s := &connection{
		target: target, window: window, logger: logger,
		changed: new(waiters), block: new(blockState),
		done: make(chan struct{}), channels: make(map[string]*opening),
	}
	var err error
	s.amqp, s.stream, err = dial(ctx, target, s.changed, s.block.active)
	if err != nil {
		return nil, err
	}
	closes := s.amqp.NotifyClose(make(chan *amqp.Error, 1))
	blocks := s.amqp.NotifyBlocked(make(chan amqp.Blocking, 8))
	s.working.Go(func() { s.watch(closes, blocks) })
	return s, nil
}

// watch follows the connection until it ends.
func (s *connection) watch(closes <-chan *amqp.Error, blocks <-chan amqp.Blocking) {
	var cause *amqp.Error
	for closes != nil {
		select {
		case e, ok := <-closes:
			if ok {
				cause = e
			} else {
				closes = nil
			}
		case b, ok := <-blocks:
			switch {
			case !ok:
				blocks = nil
				continue
			case b.Active:
				s.logger.Warn("RabbitMQ blocks publishers: no memory or disk space left on the broker", "broker", s.target.address, "reason", b.Reason)
				s.block.reason.Store(&b.Reason)
			default:
				s.logger.Info("RabbitMQ takes messages again", "broker", s.target.address)
				s.block.reason.Store(nil)
			}
			s.changed.wake()
		}
	}
	s.err = s.ending(cause)
	close(s.done)
	s.changed.wake()
}

// ending explains the end of the connection: by the broker's own words if it
// said any, else by what happened to the socket.
func (s *connection) ending(cause *amqp.Error) error {
	switch reason := s.stream.cause(); {
	case cause == nil:
		return errClosed
	case cause.Server || reason == nil:
		return lost(s.target.address, cause)
	default:
		return lost(s.target.address, reason)
	}
}

// ended reports whether the connection is gone; s.err may come a little later,
// with done.
func (s *connection) ended() bool { return s.amqp.IsClosed() }

// failure waits for the reason of the connection's end, which ended reported.
func (s *connection) failure() error {
	<-s.done
	return s.err
}

// close ends the connection, politely if the broker answers soon, and waits
// for the connection's goroutines.
func (s *connection) close() {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	// An error only says that it was closed already or did not answer.
	_ = s.amqp.CloseDeadline(time.Now().Add(time.Second))
	s.working.Wait()
	<-s.stream.done
}

// start runs f in a goroutine of the connection, unless the connection is closing.
func (s *connection) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.working.Go(f)
	return true
}

// rpc runs f, which talks with the broker and knows no context, in a goroutine
// of the connection: f ends at the latest when heartbeats end the connection.
func (s *connection) rpc(ctx context.Context, f func() error) error {
	result := make(chan error, 1)
	if !s.start(func() { result <- f() }) {
		return errClosed
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return interrupted(ctx, s.target.address, false)
	}
}

// channel returns the channel of an exchange, opened if need be.
func (s *connection) channel(ctx context.Context, exchange string) (*channel, error) {
	s.mu.Lock()
	o := s.channels[exchange]
	if o == nil {
		if s.closing {
			s.mu.Unlock()
			return nil, errClosed
		}
		o = &opening{ready: make(chan struct{})}
		s.channels[exchange] = o
		s.working.Go(func() {
			o.channel, o.err = s.open(exchange, s.window, true)
			if o.err != nil {
				s.forget(exchange, o)
				close(o.ready)
				return
			}
			close(o.ready)
			o.channel.run(func() { s.forget(exchange, o) })
		})
	}
	s.mu.Unlock()
	return o.wait(ctx, s.target.address)
}

// privateChannel opens a channel for one message at a time that only its caller
// uses, and that the caller retires.
func (s *connection) privateChannel(ctx context.Context, exchange string) (*channel, error) {
	o := &opening{ready: make(chan struct{})}
	if !s.start(func() {
		o.channel, o.err = s.open(exchange, 1, false)
		close(o.ready)
		if o.err == nil {
			o.channel.run(nil)
		}
	}) {
		return nil, errClosed
	}
	l, err := o.wait(ctx, s.target.address)
	if err != nil {
		s.start(func() {
			if <-o.ready; o.err == nil {
				o.channel.retire()
			}
		})
	}
	return l, err
}

func (o *opening) wait(ctx context.Context, address string) (*channel, error) {
	select {
	case <-o.ready:
		return o.channel, o.err
	case <-ctx.Done():
		return nil, interrupted(ctx, address, false)
	}
}

// forget makes the next call open a new channel.
func (s *connection) forget(exchange string, o *opening) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.channels[exchange] == o {
		delete(s.channels, exchange)
	}
}

// open opens a channel in confirm mode, after a look at the exchange on a
// channel of its own when checked is set: the broker would answer a publish to
// a missing one by closing the channel.
func (s *connection) open(exchange string, window int, checked bool) (*channel, error) {
	if checked && exchange != "" {
		if err := s.examine(func(channel *amqp.Channel) error {
			return channel.ExchangeDeclarePassive(exchange, amqp.ExchangeDirect, true, false, false, false, nil)
		}); err != nil {
			e, ok := errors.AsType[*amqp.Error](err)
			if !ok || s.ended() {
				return nil, s.broken(err)
			}
			return nil, exchangeRefusal(exchange, s.target.user, e)
		}
	}
	channel, err := s.amqp.Channel()
	if err != nil {
		return nil, s.broken(err)
	}
	if err := channel.Confirm(false); err != nil {
		_ = channel.Close()
		return nil, s.broken(err)
	}
	return newChannel(s, exchange, channel, window), nil
}

// examine asks the broker something on a channel of its own, which a negative
// answer closes.
func (s *connection) examine(question func(*amqp.Channel) error) error {
	channel, err := s.amqp.Channel()
	if err != nil {
		return s.broken(err)
	}
	err = question(channel)
	_ = channel.Close()
	return err
}

// learn takes the bound on the size of messages from what the broker said about
// one, and reports whether it did: what is too large is not sent then, and does
// not cost others their channel.
func (s *connection) learn(e *amqp.Error) bool {
	limit, ok := sizeLimit(e)
	if ok {
		s.bound.Store(&sizeBound{limit, time.Now().Add(believeBound)})
	}
	return ok
}

// largest is the size in bytes of the largest payload that the broker takes, as
// far as that is known.
func (s *connection) largest() int64 {
	if b := s.bound.Load(); b != nil && time.Now().Before(b.until) {
		return b.limit
	}
	return math.MaxInt64
}

// broken is the failure of a talk with the broker that should have succeeded.
func (s *connection) broken(err error) error {
	if s.ended() {
		return s.failure()
	}
	return away(reasonConnection, err)
}
