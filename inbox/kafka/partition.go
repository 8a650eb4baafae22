package kafka

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/internal/attempt"
)

// partition processes one partition, message after message, for as long as a
// generation lasts.
type partition struct {
	consumer *Consumer
	id       partitionID
	fetcher  fetcher
	progress *progress
	logger   *slog.Logger
	trouble  trouble

	// next is the offset of the message to be processed next.
	next int64
	// outside is how often in a row the next offset was not in the partition.
	outside int
}

// message is a message in both its forms.
type message struct {
	inbox.Message
	record record
}

// run ends when its first context does, which stops it from beginning anything
// new. work outlives that, so that the handler may finish.
func (p *partition) run(ended, work context.Context, committed int64) {
	defer p.fetcher.close()
	defer p.consumer.reach.forget(p.id)
	if !p.start(ended, committed) {
		return
	}
	for failures := 0; ended.Err() == nil; {
		records, err := p.fetcher.fetch(ended, p.next)
		if err == nil {
			failures = 0
			p.outside = 0
			p.trouble.over(p.logger, "reading again")
			p.consumer.reach.partition(p.id, true)
			p.progress.saw(p.id, records.end)
			err = p.consume(ended, work, records)
		}
		if err == nil || ended.Err() != nil {
			continue
		}
		if errors.Is(err, kafkago.OffsetOutOfRange) {
			err = p.relocate(ended, err)
		}
		if err != nil {
			failures++
			p.trouble.begins(p.logger, "cannot read the partition; trying again", err)
			p.consumer.reach.partition(p.id, false)
			p.consumer.pause(ended, failures)
		}
	}
}

// start finds the first offset. It returns false when ended has.
func (p *partition) start(ended context.Context, committed int64) bool {
	p.next = committed
	for failures := 0; p.next < 0 && ended.Err() == nil; {
		first, err := p.fetcher.offset(ended, p.consumer.config.StartOffset)
		if err == nil {
			p.trouble.over(p.logger, "reading again")
			p.next = first
			if p.consumer.config.StartOffset == kafkago.LastOffset {
				// Else a member that ends before it has processed a message
				// would have its successor begin at a later offset.
				p.progress.await(ended, p.id, first)
			}
			break
		}
		if ended.Err() == nil {
			failures++
			p.consumer.reach.partition(p.id, false)
			p.trouble.begins(p.logger, "cannot find out where the partition begins; trying again", err)
			p.consumer.pause(ended, failures)
		}
	}
	return ended.Err() == nil
}

// relocate deals with an offset that is not in the partition.
func (p *partition) relocate(ctx context.Context, outOfRange error) error {
	first, err := p.fetcher.offset(ctx, kafkago.FirstOffset)
	if err != nil {
		return err
	}
	last, err := p.fetcher.offset(ctx, kafkago.LastOffset)
	if err != nil {
		return err
	}
	switch {
	case p.next < first:
		p.logger.Error("messages were removed by the topic's retention before they were processed",
			"from", p.next, "to", first-1, "messages", first-p.next)
	case p.next > last:
		// A new leader may not know yet what it has.
		if p.outside++; p.outside < 5 {
			return outOfRange
		}
		p.logger.Error("the partition ends before the group's offset: it was made anew, or lost its end in an unclean election; reading from its beginning, what was processed is recognised",
			"offset", p.next, "first", first, "end", last)
	default:
		return outOfRange // it is in range by now
	}
	p.outside = 0
	p.next = first
	p.progress.settle(p.id, first)
	return nil
}

// consume processes the records of a response, as long as ended has not. An
// error says that they cannot be read.
func (p *partition) consume(ended, work context.Context, records *records) error {
	from := p.next
	for ended.Err() == nil {
		batch, err := p.gather(records)
		if len(batch) > 0 {
			settled := p.process(ended, work, batch)
			if settled > 0 {
				p.next = batch[settled-1].record.offset + 1
				p.progress.settle(p.id, p.next)
			}
			if settled < len(batch) {
				return nil
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if ended.Err() == nil {
		return p.passOver(ended, from, records)
	}
	return nil
}

// passOver goes on behind what was read: also behind what is no message, such
// as the end of a transaction.
func (p *partition) passOver(ended context.Context, from int64, records *records) error {
	if !records.seen && records.stable > from {
		// Something is there and did not come: do not ask in a hurry.
		p.consumer.pause(ended, 1)
	}
	end := records.next
	if records.stuck(from) {
		var err error
		if end, err = p.fetcher.pass(ended, from, records); err != nil {
			return err
		}
	}
	if end > p.next {
		p.next = end
		p.progress.settle(p.id, end)
	}
	return nil
}

// gather returns the next messages: one, or up to BatchSize for a BatchHandler.
func (p *partition) gather(records *records) (batch []message, err error) {
	size := 1
	if p.consumer.config.BatchHandler != nil {
		size = p.consumer.config.BatchSize
	}
	for len(batch) < size {
		r, err := records.read()
		if err != nil {
			return batch, err
		}
		batch = append(batch, p.consumer.decode(p.id, r))
	}
	return batch, nil
}

// process settles messages in their order and returns how many. They are fewer
// only when ended has.
func (p *partition) process(ended, work context.Context, batch []message) (settled int) {
	for settled < len(batch) {
		n := p.consumer.identifiable(batch[settled:])
		if n > 1 {
			done, blame := p.together(ended, work, batch[settled:settled+n])
			if done {
				settled += n
				continue
			}
			if !blame {
				return settled
			}
			// One of them is to blame: each on its own, then.
		}
		for range max(n, 1) {
			if ended.Err() != nil || !p.alone(ended, work, batch[settled]) {
				return settled
			}
			settled++
		}
	}
	return settled
}

// together processes messages in one transaction. blame says that one of them
// made it fail.
func (p *partition) together(ended, work context.Context, batch []message) (done, blame bool) {
	messages := make([]inbox.Message, len(batch))
	for i := range batch {
		messages[i] = batch[i].Message
	}
	for tries := 1; ; tries++ {
		results, err := p.consumer.runner.Try(work, 0, messages...)
		if err == nil {
			p.consumer.counters.count(results)
			return true, false
		}
		switch p.consumer.runner.Judge(work, err) {
		case attempt.Database:
			if !p.consumer.pause(ended, tries) {
				return false, false
			}
			p.retried()
		case attempt.Interrupted:
			return false, false
		default:
			p.logger.Warn("a batch failed; trying its messages one by one", "messages", len(batch),
				"from", batch[0].record.offset, "to", batch[len(batch)-1].record.offset, "error", err)
			p.retried()
			return false, true
		}
	}
}

// alone processes a message, or hands it to OnPoison. It returns false when
// ended has, and the message is left to who gets the partition next.
func (p *partition) alone(ended, work context.Context, m message) bool {
	logger := p.logger.With("offset", m.record.offset)
	if id, err := p.consumer.runner.Identify(m.Message); err == nil {
		logger = logger.With("message_id", id)
	}
	for tries, attempts := 1, 0; ; tries++ {
		results, err := p.consumer.runner.Try(work, attempts+1, m.Message)
		if err == nil {
			p.consumer.counters.count(results)
			return true
		}
		asked := time.Duration(0)
		switch fault := p.consumer.runner.Judge(work, err); fault {
		case attempt.Interrupted:
			return false
		case attempt.Database:
		case attempt.Hopeless:
			return p.poison(ended, work, logger, m, failure{err: err, attempts: 1})
		case attempt.Message, attempt.Permanent:
			attempts++
			p.consumer.counters.failed(err)
			attributes := []any{"attempt", attempts, "of", p.consumer.config.MaxAttempts, "error", err}
			if panicked, ok := errors.AsType[*PanicError](err); ok {
				attributes = append(attributes, "stack", string(panicked.Stack))
			}
			logger.Warn("a message could not be processed", attributes...)
			if fault == attempt.Permanent || attempts >= p.consumer.config.MaxAttempts {
				return p.poison(ended, work, logger, m, failure{err: err, attempts: attempts})
			}
			tries, asked = attempts, attempt.RetryAfter(err)
		}
		if !p.consumer.pauseFor(ended, cmp.Or(asked, p.consumer.config.Backoff.pause(tries, rand.Float64()))) { //nolint:gosec // not a secret
			return false
		}
		p.retried()
	}
}

func (p *partition) retried() {
	p.consumer.runner.Observer().Retried(p.consumer.config.Inbox.Consumer, p.id.topic)
}

// poison puts a message aside, however long that takes.
func (p *partition) poison(ended, work context.Context, logger *slog.Logger, m message, f failure) bool {
	observer, consumer := p.consumer.runner.Observer(), p.consumer.config.Inbox.Consumer
	for tries := 1; ; tries++ {
		where, err := p.consumer.putAside(work, m, f)
		if err == nil {
			p.consumer.counters.poisoned.Add(1)
			observer.PutAside(consumer, p.id.topic, p.consumer.aside())
			logger.Error("a message was given up", "now", where, "attempts", f.attempts, "error", f.err)
			p.trouble.over(logger, "messages can be put aside again")
			return true
		}
		if work.Err() != nil {
			return false
		}
		observer.PutAsideFailed(consumer, p.id.topic)
		p.trouble.begins(logger, "a message cannot be processed, and neither can it be put aside: the partition waits", err)
		if !p.consumer.pause(ended, tries) {
			return false
		}
	}
}

// trouble logs a lasting failure when it begins, when it changes and once a
// minute, and its end.
type trouble struct {
	text string
	told time.Time
}

func (t *trouble) begins(logger *slog.Logger, what string, err error) {
	text := what + err.Error()
	if text == t.text && time.Since(t.told) < time.Minute {
		return
	}
	t.text, t.told = text, time.Now()
	logger.Warn(what, "error", err)
}

func (t *trouble) over(logger *slog.Logger, what string) {
	if t.text != "" {
		t.text = ""
		logger.Info(what)
	}
}

// pause waits before the next try, the nth. It returns false when ctx has
// ended.
func (c *Consumer) pause(ctx context.Context, n int) bool {
	return c.pauseFor(ctx, c.config.Backoff.pause(n, rand.Float64())) //nolint:gosec // not a secret
}

func (c *Consumer) pauseFor(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
