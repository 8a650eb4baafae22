package main

import (
	"context"
	"fmt"
	"time"
)

// drain measures how fast a backlog goes.
func (b *bench) drain(ctx context.Context) error {
	conn, config, err := b.prepare(ctx, "drain")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	_, err = conn.Exec(ctx, `INSERT INTO outbox (topic, key, type, payload)
		SELECT 'drain', 'key-' || i % $2, 'Measured', convert_to(repeat('x', $3), 'UTF8') FROM generate_series(1, $1) i`, b.rows, b.keys, b.bytes)
	if err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, `VACUUM ANALYZE outbox`); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, `CHECKPOINT`); err != nil {
		return err
	}
	relay, err := b.start(ctx, config)
	if err != nil {
		return err
	}
	began := time.Now()
	// The sequence of marks, not their count, tells the end without disturbing:
	// one probe of the partial index.
	for pending := true; pending; {
		time.Sleep(20 * time.Millisecond)
		if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM outbox WHERE published_at IS NULL AND available_at IS NULL)`).Scan(&pending); err != nil {
			return err
		}
	}
	took := time.Since(began)
	used, err := relay.usage()
	if err != nil {
		return err
	}
	if err := relay.stop(); err != nil {
		return err
	}
	fmt.Printf("drain    %d rows of %d bytes over %d keys, batch_size %d, workers %d, %s: %.0f rows/s, relay %.2f CPU-seconds per 100k rows, peak %d MiB\n",
		b.rows, b.bytes, b.keys, b.batch, b.workers, b.onPublished, float64(b.rows)/took.Seconds(), used.cpu.Seconds()*100_000/float64(b.rows), used.peakMiB)
	return nil
}
