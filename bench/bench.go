package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/outboxrelay/relay/e2e/servers"
)

// What -only and -lanes name.
const (
	drain   = "drain"
	latency = "latency"

	laneRelay    = "relay"
	laneDebezium = "debezium"
	laneProducer = "producer"
)

// warmUp is the number of rows that go before those that are measured, so that
// virtual machines have compiled what they need.
const warmUp = 200_000

// bench is the servers and what is measured.
type bench struct {
	settings
	scratch, binary, plugins string
	postgres                 *servers.Postgres
	kafka                    *servers.Kafka
	// named counts databases and topics.
	named int
}

// name is one that no database and no topic has yet.
func (b *bench) name() string {
	b.named++
	return fmt.Sprintf("bench%d", b.named)
}

// subject carries rows of a database's table to topics. It is paused until it
// is resumed.
type subject interface {
	// backlog writes rows for the topic.
	backlog(ctx context.Context, topic string, rows int) error
	// insertion is the statement that inserts one row, with a notification where
	// that helps. Its parameters are topic, key and payload.
	insertion() string
	// database is the connection string of where the rows are.
	database() string
	// resume starts its work, or continues it, and returns its process.
	resume(ctx context.Context) (pid int, err error)
	// settled says whether nothing is left to do for it, once the broker has
	// all messages.
	settled(ctx context.Context) (bool, error)
	// pause ends its work until it is resumed.
	pause() error
	// logTail is the end of its log.
	logTail() string
}

// payload is an expression of SQL for a JSON document of about so many bytes,
// with a number in it that consumers find the row by.
const payload = `'{"n": ' || %s || ', "x": "' || repeat('x', greatest(%d - 24, 1)) || '"}'`

// measure measures every lane as often as wanted, in turn.
func (b *bench) measure(ctx context.Context) ([]result, error) {
	if err := b.warm(ctx); err != nil {
		return nil, fmt.Errorf("warm-up: %w", err)
	}
	var all []result
	for round := range b.rounds {
		if b.rounds > 1 {
			fmt.Fprintf(os.Stderr, "bench: round %d of %d\n", round+1, b.rounds)
		}
		for _, lane := range b.all() {
			results, err := lane(ctx)
			if err != nil {
				return medians(all), err
			}
			all = append(all, results...)
		}
	}
	return medians(all), nil
}

// all are the lanes in the order of their measuring.
func (b *bench) all() []func(context.Context) ([]result, error) {
	var lanes []func(context.Context) ([]result, error)
	if b.measures(laneRelay) {
		for _, v := range b.variants() {
			lanes = append(lanes, func(ctx context.Context) ([]result, error) { return b.relayLane(ctx, v) })
		}
	}
	if b.measures(laneDebezium) {
		lanes = append(lanes, b.debeziumLane)
	}
	if b.measures(laneProducer) && b.only != latency {
		lanes = append(lanes, b.producerLane)
	}
	return lanes
}

// warm lets the servers get warm: beside other work one drain is not enough for
// Kafka's virtual machine.
func (b *bench) warm(ctx context.Context) error {
	for range 2 {
		s, err := b.newRelay(ctx, b.variants()[0])
		if err != nil {
			return err
		}
		_, err = b.drain(ctx, s, warmUp)
		s.close()
		if err != nil {
			return err
		}
	}
	return nil
}

// drain measures how fast a backlog goes, and what that costs.
func (b *bench) drain(ctx context.Context, s subject, rows int) (result, error) {
	topic, err := b.topic(ctx)
	if err != nil {
		return result{}, err
	}
	if err := s.backlog(ctx, topic, rows); err != nil {
		return result{}, err
	}
	pid, err := s.resume(ctx)
	if err != nil {
		return result{}, err
	}
	meter, err := newMeter(pid, b.postgres.PID(), b.kafka.PID())
	if err != nil {
		return result{}, err
	}
	if err := b.awaitPublished(ctx, topic, rows, s); err != nil {
		return result{}, err
	}
	r, err := meter.since(rows)
	if err != nil {
		return result{}, err
	}
	r.group = drain
	return r, s.pause()
}

// latency measures how long rows take from their commit, as the writer learns of
// it, to a consumer of the topic. Each is a transaction of its own.
func (b *bench) latency(ctx context.Context, s subject) (result, error) {
	topic, err := b.topic(ctx)
	if err != nil {
		return result{}, err
	}
	pid, err := s.resume(ctx)
	if err != nil {
		return result{}, err
	}
	consumer := b.consume(ctx, topic)
	defer consumer.stop()
	before := b.rowsIn(b.settleIn)
	if _, err := b.write(ctx, s, topic, 0, before); err != nil {
		return result{}, err
	}
	meter, err := newMeter(pid, b.postgres.PID(), b.kafka.PID())
	if err != nil {
		return result{}, err
	}
	measured := b.rowsIn(b.duration)
	commits, err := b.write(ctx, s, topic, before, measured)
	if err != nil {
		return result{}, err
	}
	written, err := meter.since(measured)
	if err != nil {
		return result{}, err
	}
	if err := b.awaitPublished(ctx, topic, before+measured, s); err != nil {
		return result{}, err
	}
	// What is late costs too, but is not what was written per second.
	r, err := meter.since(measured)
	if err != nil {
		return result{}, err
	}
	r.group, r.rate = fmt.Sprintf("%d/s", b.rate), written.rate
	if r.p50, r.p99, err = consumer.percentiles(ctx, commits, before+measured); err != nil {
		return result{}, err
	}
	return r, s.pause()
}

// rowsIn is how many rows are written in so much time.
func (b *bench) rowsIn(d time.Duration) int { return int(d.Seconds() * float64(b.rate)) }

// topic makes one.
func (b *bench) topic(ctx context.Context) (string, error) {
	name := b.name()
	return name, b.kafka.CreateTopic(ctx, name, b.partitions, nil)
}
