package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// latency measures how long rows take from their insertion, each a transaction
// of its own that notifies, until they are marked, which is a little after the
// broker acknowledged them.
func (b *bench) latency(ctx context.Context) error {
	conn, config, err := b.prepare(ctx, "latency")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	relay, err := b.start(ctx, config)
	if err != nil {
		return err
	}
	meter, err := newMeter(relay.command.Process.Pid, b.postgres.PID())
	if err != nil {
		return err
	}
	insert := `WITH n AS (SELECT pg_notify('outbox', '')) INSERT INTO outbox (topic, key, type, payload)
		SELECT 'latency', 'key-' || $1::int, 'Measured', convert_to(repeat('x', $2::int), 'UTF8') FROM n`
	if b.onPublished != "mark" {
		return fmt.Errorf("latency is read from marks: use -on-published mark")
	}
	rows := int(b.duration.Seconds() * float64(b.rate))
	if err := b.write(ctx, "latency", insert, rows); err != nil {
		return err
	}
	err = b.awaitPublished(ctx, "latency", rows, func() (settled bool, err error) {
		err = conn.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM outbox WHERE published_at IS NULL)`).Scan(&settled)
		return settled, err
	})
	if err != nil {
		return err
	}
	_, used, err := meter.since()
	if err != nil {
		return err
	}
	if err := relay.stop(); err != nil {
		return err
	}
	// The first second warms up.
	var p50, p99, highest float64
	var seconds float64
	err = conn.QueryRow(ctx, `
		WITH measured AS (
			SELECT extract(epoch FROM published_at - created_at) * 1000 AS ms
			FROM outbox WHERE created_at > (SELECT min(created_at) FROM outbox) + interval '1 s')
		SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms), percentile_cont(0.99) WITHIN GROUP (ORDER BY ms), max(ms),
			(SELECT extract(epoch FROM max(created_at) - min(created_at)) FROM outbox)
		FROM measured`).Scan(&p50, &p99, &highest, &seconds)
	if err != nil {
		return err
	}
	fmt.Printf("latency  %d rows in %.1f s (%.0f rows/s), one transaction each: insert to mark p50 %.1f ms, p99 %.1f ms, max %.1f ms; relay %.1f %% of a core, PostgreSQL %.1f %%\n",
		rows, seconds, float64(rows)/seconds, p50, p99, highest, used[0].Seconds()*100/seconds, used[1].Seconds()*100/seconds)
	return nil
}

// writers is the number of connections that insert, since one cannot commit
// often enough on every machine.
const writers = 4

// write inserts rows one by one at the rate, spread over the writers.
func (b *bench) write(ctx context.Context, database, insert string, rows int) error {
	group := make(chan error, writers)
	for w := range writers {
		go func() { group <- b.writeSome(ctx, database, insert, w, rows) }()
	}
	var all error
	for range writers {
		all = errors.Join(all, <-group)
	}
	return all
}

// writeSome inserts every so many-th of the rows.
func (b *bench) writeSome(ctx context.Context, database, insert string, first, rows int) error {
	conn, err := pgx.Connect(ctx, b.postgres.URL(database))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	pause := time.NewTicker(time.Second * writers / time.Duration(b.rate))
	defer pause.Stop()
	for i := first; i < rows; i += writers {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pause.C:
		}
		if _, err := conn.Exec(ctx, insert, i%b.keys, b.bytes); err != nil {
			return err
		}
	}
	return nil
}
