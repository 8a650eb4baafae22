package rabbitmq

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/inbox/internal/consume"
)

// session is one subscription on a connection of its own. Nothing of it
// survives it: what is not acknowledged when it ends comes again.
type session struct {
	consumer   *Consumer
	link       *link
	channel    *amqp.Channel
	deliveries <-chan amqp.Delivery
	closes     chan *amqp.Error
	cancels    chan string
	acks       *acks

	// halted ends when no further message is to be started, because Run or
	// the session ends. Its cause is the reason.
	halted context.Context
	halt   context.CancelCauseFunc
	// settled counts what was acknowledged.
	settled atomic.Int64
}

// subscribe connects and begins to consume. Its errors name the remedy.
func (c *Consumer) subscribe(ctx context.Context, url string) (*session, error) {
	l, err := connect(ctx, url, c.config.Name, c.config.TLS)
	if err != nil {
		return nil, err
	}
	s := &session{consumer: c, link: l}
	if err := l.talk(s.open); err != nil {
		l.close()
		return nil, err
	}
	return s, nil
}

func (s *session) open() error {
	config := &s.consumer.config
	if config.Declare != nil {
		// A declaration that the broker refuses closes its channel.
		channel, err := s.link.connection.Channel()
		if err != nil {
			return s.explain("opening a channel", err)
		}
		if err := config.Declare(channel); err != nil {
			return s.explain("Declare", err)
		}
		if err := channel.Close(); err != nil {
			return s.explain("closing a channel", err)
		}
	}
	var err error
	if s.channel, err = s.link.connection.Channel(); err != nil {
		return s.explain("opening a channel", err)
	}
	s.closes = s.channel.NotifyClose(make(chan *amqp.Error, 1))
	s.cancels = s.channel.NotifyCancel(make(chan string, 1))
	s.acks = newAcks(s.channel, config.Prefetch/4)
	if err := s.channel.Qos(config.Prefetch, 0, false); err != nil {
		return s.explain("setting the prefetch", err)
	}
	tag := config.Name
	if len(tag) > shortString-27 {
		tag = tag[:shortString-27]
	}
	s.deliveries, err = s.channel.Consume(config.Queue, tag+"-"+rand.Text(), false, config.Exclusive, false, false, config.Arguments)
	if err != nil {
		return s.explain("subscribing", err)
	}
	return nil
}

// explain names the remedy of a refused request.
func (s *session) explain(what string, err error) error {
	queue := s.consumer.config.Queue
	e, _ := errors.AsType[*amqp.Error](err)
	switch {
	case what == "Declare":
		return fmt.Errorf("RabbitMQ at %s: Declare: %w", s.link.address, err)
	case e == nil:
	case e.Code == amqp.NotFound:
		return fmt.Errorf("RabbitMQ at %s: queue %q does not exist: create it, or set Declare (%s)", s.link.address, queue, e.Reason)
	case e.Code == amqp.AccessRefused:
		return fmt.Errorf("RabbitMQ at %s: queue %q cannot be read: grant read permission, or end the consumer that has it exclusively (%s)", s.link.address, queue, e.Reason)
	case e.Code == amqp.ResourceLocked:
		return fmt.Errorf("RabbitMQ at %s: queue %q belongs to another connection (%s)", s.link.address, queue, e.Reason)
	}
	return fmt.Errorf("RabbitMQ at %s: %s, queue %q: %w", s.link.address, what, queue, err)
}

// run processes messages until ctx or the subscription ends, which it says
// why, and returns when its workers have. progress reports that something was
// settled.
func (s *session) run(ctx, work context.Context) (progress bool, err error) {
	s.halted, s.halt = context.WithCancelCause(ctx)
	defer s.halt(nil)
	// It holds no more than Prefetch messages.
	queue := s.consumer.runner.NewQueue(s.halted, s.consumer.logger)
	queue.Acknowledge, queue.Halt = s.acknowledge, s.halt
	if s.consumer.config.Retry == RetryRequeue {
		queue.Requeue = func(item *consume.Item) { _ = s.acks.requeue(tag(item)) } // an error ends the session too
	}
	var workers sync.WaitGroup
	workers.Go(func() { queue.Run(work) })
	err = s.dispatch(queue)
	s.halt(err)
	workers.Wait()
	_ = s.acks.flush() // what is not told comes again
	// The end of the channel gives back what is not acknowledged, in its old
	// place, in the same moment as it ends the consumer: no other one gets
	// later messages first, as it would if the consumer were cancelled while
	// its messages are still here. The broker has read every acknowledgement
	// before it.
	if err := s.link.talk(s.channel.Close); err != nil && ctx.Err() != nil {
		s.consumer.logger.Warn("the connection ended before the broker had all acknowledgements: what is missing comes again and is recognised", "error", err)
	}
	s.link.close()
	return s.settled.Load() > 0, err
}

// dispatch hands deliveries to the queue until the subscription ends.
func (s *session) dispatch(queue *consume.Queue) error {
	for {
		select {
		case d, ok := <-s.deliveries:
			if !ok {
				return s.ending()
			}
			queue.Add(s.consumer.decode(&d))
		case <-s.halted.Done():
			return context.Cause(s.halted)
		}
	}
}

// acknowledge tells the broker what is settled. An error ends the session too,
// and the messages come again and are recognised.
func (s *session) acknowledge(items ...*consume.Item) {
	tags := make([]uint64, len(items))
	for n, item := range items {
		tags[n] = tag(item)
	}
	if err := s.acks.ack(tags...); err != nil {
		s.consumer.runner.Observer().AcknowledgementFailed(s.consumer.config.Inbox.Consumer, s.consumer.config.Queue)
		return
	}
	s.settled.Add(int64(len(tags)))
}

func tag(item *consume.Item) uint64 { return item.Delivery.(*amqp.Delivery).DeliveryTag }

// ending says why no more deliveries come.
func (s *session) ending() error {
	select {
	case tag, ok := <-s.cancels:
		if ok {
			return fmt.Errorf("RabbitMQ at %s cancelled consumer %s: queue %q was deleted or moved to another node, or a message was not acknowledged in time", s.link.address, tag, s.consumer.config.Queue)
		}
	default:
	}
	// One of both comes before the deliveries' end, and the connection's own
	// reason is the better one.
	for _, reasons := range []chan *amqp.Error{s.link.gone, s.closes} {
		select {
		case e, ok := <-reasons:
			if ok && e != nil {
				return s.lost(e)
			}
		default:
		}
	}
	return fmt.Errorf("RabbitMQ at %s: the connection was closed", s.link.address)
}

func (s *session) lost(e *amqp.Error) error {
	if e.Code == amqp.PreconditionFailed {
		return fmt.Errorf("RabbitMQ at %s closed the channel: %w: if a message was not acknowledged in time, lower Prefetch or HandlerTimeout, or raise the broker's consumer_timeout", s.link.address, e)
	}
	return fmt.Errorf("RabbitMQ at %s: the connection was lost: %w", s.link.address, e)
}
