package kafka

import (
	"context"
	"maps"
	"slices"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/sinks"
)

const (
	// grace is how long a topic that nobody knows is waited for: it may have
	// been created a moment ago.
	grace = 2 * time.Second
	// unknownFor is how long an unknown topic is not waited for again.
	unknownFor = 30 * time.Second
	// spread is how many messages without key go to a partition before the
	// next one is taken.
	spread = 16
)

// target is a call's messages for one topic.
type target struct {
	topic   string
	indexes []int32
}

// dispatch hands the messages to the writers, and fails those that have none.
func (p *Publisher) dispatch(ctx context.Context, c *call) {
	var absent []target
	var aged []string
	now := time.Now()
	for _, t := range group(c.messages) {
		layout := p.layouts.of(t.topic)
		if layout == nil || now.Sub(layout.asked) > layoutExpiry {
			absent = append(absent, t)
			continue
		}
		if now.Sub(layout.asked) > layoutAge {
			aged = append(aged, t.topic)
		}
		p.assign(ctx, c, t, layout)
	}
	if len(aged) > 0 {
		p.refresh(aged)
	}
	if len(absent) > 0 {
		p.awaitTopics(ctx, c, absent)
	}
}

func group(messages []sinks.Message) []target {
	var targets []target
	byTopic := map[string]int{}
	last := -1
	for i := range messages {
		topic := messages[i].Destination
		if last < 0 || targets[last].topic != topic {
			at, ok := byTopic[topic]
			if !ok {
				at = len(targets)
				byTopic[topic] = at
				targets = append(targets, target{topic: topic})
				if at == 0 {
					targets[0].indexes = make([]int32, 0, len(messages))
				}
			}
			last = at
		}
		targets[last].indexes = append(targets[last].indexes, int32(i))
	}
	return targets
}

// awaitTopics asks the brokers for topics that the metadata does not have. What
// is unknown for longer than the grace fails.
func (p *Publisher) awaitTopics(ctx context.Context, c *call, absent []target) {
	p.forgetUnknown()
	until := time.Now().Add(grace)
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		names := make([]string, len(absent))
		for i, t := range absent {
			names[i] = t.topic
		}
		response, err := p.layouts.ask(ctx, names)
		if ctx.Err() != nil || p.ctx.Err() != nil {
			return
		}
		if err != nil {
			err = &sinks.Error{Scope: sinks.ScopeSink, Reason: judge(err).reason, Err: p.cluster.diagnose(err)}
			for _, t := range absent {
				c.fail(err, t.indexes...)
			}
			return
		}
		codes := make(map[string]kafkago.Error, len(response.Topics))
		for i := range response.Topics {
			codes[response.Topics[i].Name] = kafkago.Error(response.Topics[i].ErrorCode)
		}
		var left []target
		for _, t := range absent {
			code, answered := codes[t.topic]
			layout := p.layouts.of(t.topic)
			switch {
			case answered && layout != nil:
				p.known(t.topic)
				p.assign(ctx, c, t, layout)
			case answered && transient(code) && p.waitFor(t.topic, until):
				left = append(left, t)
			default:
				if !answered || code == 0 {
					code = kafkago.UnknownTopicOrPartition
				}
				c.fail(p.topicError(t.topic, code), t.indexes...)
			}
		}
		if len(left) == 0 {
			return
		}
		absent = left
		sleep(ctx, pause)
	}
}

// transient reports whether a topic's state may be one of its creation.
func transient(code kafkago.Error) bool {
	return code == 0 || code == kafkago.UnknownTopicOrPartition || code == kafkago.LeaderNotAvailable
}

// waitFor reports whether to wait for an unknown topic: until the grace ended,
// and not again soon after that.
func (p *Publisher) waitFor(topic string, until time.Time) bool {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Before(p.unknown[topic]) {
		return false
	}
	if now.Before(until) {
		return true
	}
	p.unknown[topic] = now.Add(unknownFor)
	return false
}

// forgetUnknown drops the topics that may be waited for again.
func (p *Publisher) forgetUnknown() {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.unknown, func(_ string, expires time.Time) bool { return now.After(expires) })
}

func (p *Publisher) known(topic string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.unknown, topic)
}

// assign hands a topic's messages to the writers of its partitions.
func (p *Publisher) assign(ctx context.Context, c *call, t target, layout *layout) {
	partitions := len(layout.leaders)
	if !c.stream.keeps(ctx, c, t.topic, partitions) {
		return
	}
	chosen := make([]int32, len(t.indexes))
	counts := make([]int32, partitions)
	var open []int32
	for n, i := range t.indexes {
		m := &c.messages[i]
		if m.Key != nil {
			chosen[n] = partitionOf(m.Key, partitions)
		} else {
			if open == nil {
				open = p.open(t.topic, layout)
			}
			chosen[n] = open[(p.keyless.Add(1)-1)/spread%uint32(len(open))]
		}
		counts[chosen[n]]++
	}
	segments := cutSegments(c, t.indexes, chosen, counts)
	c.stream.mu.Lock()
	c.segments = slices.Grow(c.segments, len(segments))
	for i := range segments {
		c.segments = append(c.segments, &segments[i])
	}
	c.stream.mu.Unlock()
	for i := range segments {
		s := &segments[i]
		p.writer(t.topic, s.partition).enqueue(s)
	}
}

// cutSegments sorts messages by the partitions that were chosen for them, of which
// each has so many.
func cutSegments(c *call, messages, chosen, counts []int32) []segment {
	used := 0
	for _, count := range counts {
		if count > 0 {
			used++
		}
	}
	segments := make([]segment, 0, used)
	indexes := make([]int32, len(messages))
	start := int32(0)
	for partition, count := range counts {
		if count > 0 {
			counts[partition] = int32(len(segments)) // from now on where its segment is
			segments = append(segments, segment{call: c, partition: int32(partition), indexes: indexes[start : start : start+count]})
			start += count
		}
	}
	for n, i := range messages {
		s := &segments[counts[chosen[n]]]
		s.indexes = append(s.indexes, i)
	}
	return segments
}
