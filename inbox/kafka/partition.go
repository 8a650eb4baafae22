package kafka

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/inbox/internal/consume"
)

// partition reads one partition, and has its messages processed, for as long as a
// generation lasts.
type partition struct {
	consumer *Consumer
	id       partitionID
	fetcher  fetcher
	progress *progress
	logger   *slog.Logger
	trouble  trouble

	// window has the messages that are processed, next is the offset to be read
	// next.
	window *window
	next   int64
	// outside is how often in a row the next offset was not in the partition.
	outside int
}

// run ends when its first context does, which stops it from beginning anything
// new. work outlives that, so that the handler may finish.
func (p *partition) run(ended, work context.Context, committed int64) {
	defer p.fetcher.close()
	defer p.consumer.reach.forget(p.id)
	if !p.start(ended, committed) {
		return
	}
	p.window = newWindow(p.next, p.consumer.config.ahead(),
		func() int { return min(p.consumer.config.FetchBytes, p.consumer.cluster.budget.window()) },
		func(offset int64) { p.progress.settle(p.id, offset) })
	queue := p.consumer.runner.NewQueue(ended, p.logger)
	queue.Acknowledge = p.window.settle
	var workers sync.WaitGroup
	defer workers.Wait()
	workers.Go(func() { queue.Run(work) })
	for failures := 0; ended.Err() == nil; {
		records, err := p.fetcher.fetch(ended, p.next)
		if err == nil {
			failures = 0
			p.outside = 0
			p.trouble.over(p.logger, "reading again")
			p.consumer.reach.partition(p.id, true)
			p.progress.saw(p.id, records.end)
			p.progress.identify(p.id, p.fetcher.topic)
			err = p.consume(ended, queue, records)
		}
		if err == nil || ended.Err() != nil {
			continue
		}
		if recreated, ok := errors.AsType[*recreatedError](err); ok {
			// What is at work is of the old topic, and must not be committed as an
			// offset of the new one.
			p.window.drain(ended)
			if ended.Err() != nil || !p.restart(ended, recreated) {
				return
			}
			p.window.reset(p.next)
			continue
		}
		if truncated, ok := errors.AsType[*truncatedError](err); ok {
			p.window.drain(ended)
			if ended.Err() != nil {
				return
			}
			p.truncate(truncated)
			p.window.reset(p.next)
			continue
		}
		if errors.Is(err, kafkago.OffsetOutOfRange) {
			p.window.drain(ended) // relocate may go back
			err = p.relocate(ended, err)
			p.window.reset(p.next)
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
			p.progress.identify(p.id, p.fetcher.topic)
			if p.consumer.config.StartOffset == kafkago.LastOffset {
				// Else a member that ends before it has processed a message
				// would have its successor begin at a later offset.
				p.progress.await(ended, p.id, first)
			}
			break
		}
		if recreated, ok := errors.AsType[*recreatedError](err); ok {
			p.fetcher.topic = recreated.now // nothing was read of either
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

// restart begins with a topic that was made anew: its offsets have nothing to
// do with those of the old one. It returns false when ended has.
func (p *partition) restart(ended context.Context, recreated *recreatedError) bool {
	p.logger.Error("the topic was made anew: its offsets begin again, and so does the group, as StartOffset says",
		"old_id", recreated.was.String(), "new_id", recreated.now.String(), "old_offset", p.next)
	p.fetcher.topic, p.fetcher.epoch = recreated.now, -1
	p.progress.identify(p.id, recreated.now)
	p.progress.forget(p.id)
	if !p.start(ended, -1) {
		return false
	}
	p.progress.settle(p.id, p.next)
	return true
}

// truncate goes back to where the partition has other messages than those that
// were read.
func (p *partition) truncate(truncated *truncatedError) {
	p.logger.Error("the partition lost its end in an unclean election: reading what is there instead",
		"from", truncated.end, "to", p.next-1, "messages", p.next-truncated.end)
	p.fetcher.epoch = -1
	p.progress.forget(p.id)
	p.next = truncated.end
	p.progress.settle(p.id, p.next)
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
		p.outside = 0
		if p.consumer.config.StartOffset == kafkago.LastOffset {
			p.logger.Error("the partition ends before the group's offset: it was made anew, or lost its end in an unclean election; reading from its end, as StartOffset says",
				"offset", p.next, "first", first, "end", last)
			p.next = last
			p.fetcher.epoch = -1
			p.progress.forget(p.id)
			p.progress.await(ctx, p.id, last)
			return nil
		}
		p.logger.Error("the partition ends before the group's offset: it was made anew, or lost its end in an unclean election; reading from its beginning, what was processed is recognised",
			"offset", p.next, "first", first, "end", last)
	default:
		p.fetcher.epoch = -1 // or the leader does not know of it any more
		p.progress.forget(p.id)
		return outOfRange // it is in range by now
	}
	p.outside = 0
	p.fetcher.epoch = -1
	p.progress.forget(p.id)
	p.next = first
	p.progress.settle(p.id, first)
	return nil
}

// consume hands the records of a response to the queue, as long as ended has
// not. An error says that they cannot be read.
func (p *partition) consume(ended context.Context, queue *consume.Queue, records *records) error {
	from := p.next
	for {
		r, err := records.read()
		if errors.Is(err, io.EOF) {
			p.passOver(ended, from, records)
			return nil
		}
		if err != nil {
			return err
		}
		p.progress.begins(p.id, r.offset, records.epoch)
		item := p.consumer.decode(p.id, r)
		if !p.window.add(ended, item) {
			return nil
		}
		p.next = r.offset + 1
		queue.Add(item)
	}
}

// passOver goes on behind what was read: also behind what is no message, such
// as the end of a transaction.
func (p *partition) passOver(ended context.Context, from int64, records *records) {
	if !records.seen && records.stable > from {
		// Something is there and did not come: do not ask in a hurry.
		p.consumer.pause(ended, 1)
	}
	if records.next > p.next {
		p.progress.begins(p.id, p.next, records.epoch)
		p.next = records.next
		p.window.pass(p.next)
	}
}

// trouble is a lasting failure of the brokers.
type trouble consume.Trouble

func (t *trouble) begins(logger *slog.Logger, what string, err error) {
	(*consume.Trouble)(t).Begins(logger, what, err)
}

func (t *trouble) over(logger *slog.Logger, what string) {
	(*consume.Trouble)(t).Over(logger, what)
}

// pause waits before the next try, the nth. It returns false when ctx has
// ended.
func (c *Consumer) pause(ctx context.Context, n int) bool {
	return consume.Sleep(ctx, c.config.Backoff.Pause(n))
}
