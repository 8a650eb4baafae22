package main

import (
	"context"
	"fmt"
)

// warmUp is the number of rows that go before those that are measured, so that
// the broker's virtual machine has compiled what it needs.
const warmUp = 200_000

// drain measures how fast a backlog goes.
func (b *bench) drain(ctx context.Context) error {
	if _, err := b.drainRows(ctx, "warmup", warmUp); err != nil {
		return err
	}
	line, err := b.drainRows(ctx, "drain", b.rows)
	fmt.Print(line)
	return err
}

// drainRows returns the line of results.
func (b *bench) drainRows(ctx context.Context, name string, rows int) (string, error) {
	conn, config, err := b.prepare(ctx, name)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	_, err = conn.Exec(ctx, `INSERT INTO outbox (topic, key, type, payload)
		SELECT $4, 'key-' || i % $2, 'Measured', convert_to(repeat('x', $3), 'UTF8') FROM generate_series(1, $1) i`, rows, b.keys, b.bytes, name)
	if err != nil {
		return "", err
	}
	if _, err := conn.Exec(ctx, `VACUUM ANALYZE outbox`); err != nil {
		return "", err
	}
	if _, err := conn.Exec(ctx, `CHECKPOINT`); err != nil {
		return "", err
	}
	relay, err := b.start(ctx, config)
	if err != nil {
		return "", err
	}
	pid := relay.command.Process.Pid
	meter, err := newMeter(pid, b.postgres.PID(), b.kafka.PID())
	if err != nil {
		return "", err
	}
	err = b.awaitPublished(ctx, name, rows, func() (settled bool, err error) {
		err = conn.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM outbox WHERE published_at IS NULL)`).Scan(&settled)
		return settled, err
	})
	if err != nil {
		return "", err
	}
	took, used, err := meter.since()
	if err != nil {
		return "", err
	}
	peak, err := peakMiB(pid)
	if err != nil {
		return "", err
	}
	if err := relay.stop(); err != nil {
		return "", err
	}
	per100k := func(i int) float64 { return used[i].Seconds() * 100_000 / float64(rows) }
	return fmt.Sprintf("drain    %d rows of %d bytes over %d keys, batch_size %d, workers %d, %s: %.0f rows/s; CPU-seconds per 100k rows: relay %.2f, PostgreSQL %.2f, Kafka %.2f; relay's peak %d MiB\n",
		rows, b.bytes, b.keys, b.batch, b.workers, b.onPublished, float64(rows)/took.Seconds(), per100k(0), per100k(1), per100k(2), peak), nil
}
