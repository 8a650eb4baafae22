package main

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"time"
)

// producerTimes is how many times the rows of the other lanes the producer
// sends: it would be done with fewer before it could be measured.
const producerTimes = 5

// producerLane measures Kafka's producer performance tool, which has no table to
// read: the most that a relay could reach.
func (b *bench) producerLane(ctx context.Context) ([]result, error) {
	r, err := b.produce(ctx)
	if err != nil {
		return nil, fmt.Errorf("producer of Kafka: %w", err)
	}
	r.group, r.lane = drain, "Kafka's producer"
	return []result{r}, nil
}

func (b *bench) produce(ctx context.Context) (result, error) {
	topic, err := b.topic(ctx)
	if err != nil {
		return result{}, err
	}
	all := warmUp + producerTimes*b.rows
	command, err := b.kafka.Tool("org.apache.kafka.tools.ProducerPerformance",
		"--bootstrap-server", b.kafka.Brokers()[0], "--topic", topic, "--num-records", strconv.Itoa(all),
		"--record-size", strconv.Itoa(b.bytes), "--throughput", "-1",
		"--command-property", "acks=all", "linger.ms=5", "batch.size=131072")
	if err != nil {
		return result{}, err
	}
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	if err := command.Start(); err != nil {
		return result{}, err
	}
	pid := command.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	defer func() { _ = command.Process.Kill() }()
	var m *meter
	var r result
	before, over := 0, false
	for {
		sent, err := b.published(ctx, topic)
		if err != nil {
			return result{}, err
		}
		if m == nil && sent >= warmUp {
			before = sent
			if m, err = newMeter(pid, b.postgres.PID(), b.kafka.PID()); err != nil {
				return result{}, err
			}
		}
		if m != nil && sent > before {
			// The tool ends as soon as all is sent.
			if now, err := m.since(sent - before); err == nil {
				r = now
			}
		}
		if sent >= all {
			return r, nil
		}
		if over {
			return result{}, fmt.Errorf("it ended after %d of %d records: %s", sent, all, output.String())
		}
		select {
		case err := <-ended:
			if err != nil {
				return result{}, fmt.Errorf("%w: %s", err, output.String())
			}
			over = true // all that it sent is counted now
		case <-time.After(pollInterval):
		}
		if err := ctx.Err(); err != nil {
			return result{}, err
		}
	}
}
