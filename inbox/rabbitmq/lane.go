package rabbitmq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/internal/attempt"
)

// work processes what comes into a lane until the session is halted. Its
// messages follow each other.
func (s *session) work(work context.Context, lane <-chan *task) {
	batched := s.consumer.config.BatchHandler != nil
	for s.halted.Err() == nil {
		var t *task
		select {
		case t = <-lane:
		case <-s.halted.Done():
			return
		}
		if !batched {
			s.process(work, t)
			continue
		}
		batch := append(make([]*task, 0, s.consumer.config.BatchSize), t)
		for more := true; more && len(batch) < cap(batch); {
			select {
			case t := <-lane:
				batch = append(batch, t)
			default:
				more = false
			}
		}
		s.processBatch(work, batch)
	}
}

// processBatch processes the messages in one transaction, or, when that fails,
// one after another.
func (s *session) processBatch(work context.Context, batch []*task) {
	if len(batch) > 1 {
		messages := make([]inbox.Message, 0, len(batch))
		for _, t := range batch {
			if t.err != nil {
				break
			}
			messages = append(messages, t.message)
		}
		if len(messages) == len(batch) {
			results, err := s.consumer.runner.Try(work, 0, messages...)
			if err == nil {
				s.settle(results, batch...)
				return
			}
			if s.consumer.runner.Judge(work, err) == attempt.Interrupted {
				return
			}
			// Which one failed shows when they are alone.
			s.consumer.retried()
			s.consumer.logger.Debug("a batch failed: trying its messages one by one", "messages", len(batch), "error", err)
		}
	}
	for _, t := range batch {
		if s.halted.Err() != nil {
			return
		}
		s.process(work, t)
	}
}

// process tries a message until it is settled or the session is halted.
func (s *session) process(work context.Context, t *task) {
	c := s.consumer
	if t.err != nil {
		c.runner.Observer().Failed(c.config.Inbox.Consumer, c.config.Queue, inbox.WithoutID)
		s.bury(work, t, t.err, 0)
		return
	}
	var away time.Time // since when the database is
	for outages := 1; ; {
		results, err := c.runner.Try(work, c.attempts.of(t.id)+1, t.message)
		if err == nil {
			s.settle(results, t)
			return
		}
		var pause time.Duration
		switch fault := c.runner.Judge(work, err); fault {
		case attempt.Interrupted:
			return
		case attempt.Database:
			if away.IsZero() {
				away = time.Now()
			} else if time.Since(away) > c.patience {
				s.halt(errDatabaseAway)
				return
			}
			pause = c.config.Backoff.pause(outages, rand.Float64())
			outages++
		default:
			away, outages = time.Time{}, 1
			c.counters.failed(err)
			attempts := c.attempts.add(t.id, &t.delivery, c.config.Retry)
			if fault == attempt.Hopeless || fault == attempt.Permanent || attempts >= c.config.MaxAttempts {
				s.bury(work, t, err, attempts)
				return
			}
			pause = cmp.Or(attempt.RetryAfter(err), c.config.Backoff.pause(attempts, rand.Float64()))
			c.logFailure(t, err, attempts, pause)
			if c.config.Retry == RetryRequeue {
				// The pause comes first, or a failing message would go round
				// and round.
				if sleep(s.halted, pause) {
					c.retried()
					_ = s.acks.requeue(t.delivery.DeliveryTag) // an error ends the session too
				}
				return
			}
		}
		if !sleep(s.halted, pause) {
			return
		}
		c.retried()
	}
}

func (c *Consumer) retried() {
	c.runner.Observer().Retried(c.config.Inbox.Consumer, c.config.Queue)
}

// settle acknowledges what was committed. An error ends the session too, and
// the messages come again and are recognised.
func (s *session) settle(results []inbox.Result, tasks ...*task) {
	c := s.consumer
	tags := make([]uint64, len(tasks))
	for i, t := range tasks {
		c.counters.count(results[i])
		c.attempts.forget(t.id)
		tags[i] = t.delivery.DeliveryTag
	}
	s.acknowledge(tags...)
}

func (s *session) acknowledge(tags ...uint64) {
	if err := s.acks.ack(tags...); err != nil {
		s.consumer.runner.Observer().AcknowledgementFailed(s.consumer.config.Inbox.Consumer, s.consumer.config.Queue)
		return
	}
	s.settled.Add(int64(len(tags)))
}

// bury hands a message that cannot be processed to OnPoison, and acknowledges
// it only after that has succeeded, for which it tries as long as the session
// goes on.
func (s *session) bury(work context.Context, t *task, cause error, attempts int) {
	c := s.consumer
	for n, told := 1, ""; ; n++ {
		err := c.handOver(work, t, failure{
			err: cause, attempts: attempts, consumer: c.config.Inbox.Consumer, queue: c.config.Queue,
		})
		if err == nil {
			break
		}
		if work.Err() != nil {
			return
		}
		c.runner.Observer().PutAsideFailed(c.config.Inbox.Consumer, c.config.Queue)
		pause := c.config.Backoff.pause(n, rand.Float64())
		if err.Error() != told {
			told = err.Error()
			c.logger.Error("a message that cannot be processed could not be put aside: it is kept and that is tried again",
				"message_id", t.id, "error", err, "cause", cause, "pause", pause)
		}
		if !sleep(s.halted, pause) {
			return
		}
	}
	c.logger.Error("a message could not be processed and was put aside",
		"message_id", t.id, "type", t.message.Type, "attempts", attempts, "action", fmt.Sprintf("%T", c.config.OnPoison), "error", cause)
	c.counters.poisoned.Add(1)
	c.runner.Observer().PutAside(c.config.Inbox.Consumer, c.config.Queue, c.aside())
	c.attempts.forget(t.id)
	s.acknowledge(t.delivery.DeliveryTag)
}

// logFailure logs a failed attempt, with the stack of a panic.
func (c *Consumer) logFailure(t *task, err error, attempts int, pause time.Duration) {
	attributes := []any{"message_id", t.id, "type", t.message.Type, "attempt", attempts, "of", c.config.MaxAttempts, "pause", pause, "error", err}
	if panicked, ok := errors.AsType[*PanicError](err); ok {
		attributes = append(attributes, "stack", string(panicked.Stack))
	}
	c.logger.Warn("processing a message failed", attributes...)
}
