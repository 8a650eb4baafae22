package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// settleIn is how long rows are written before those that count: a broker that
// has just started spends more on compiling itself than on its work.
const settleIn = 20 * time.Second

// latency measures how long rows take from their commit, as the writer learns
// of it, until they are marked, which is a little after the broker's
// acknowledgement. Each is a transaction of its own that notifies.
func (b *bench) latency(ctx context.Context) error {
	if b.onPublished != "mark" {
		return fmt.Errorf("latency is read from marks: use -on-published mark")
	}
	conn, config, err := b.prepare(ctx, "latency")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	relay, err := b.start(ctx, config)
	if err != nil {
		return err
	}
	if _, err := b.write(ctx, "latency", settleIn); err != nil {
		return err
	}
	meter, err := newMeter(relay.command.Process.Pid, b.postgres.PID(), b.kafka.PID())
	if err != nil {
		return err
	}
	began := time.Now()
	commits, err := b.write(ctx, "latency", b.duration)
	if err != nil {
		return err
	}
	wall := time.Since(began)
	var rows int
	if err := conn.QueryRow(ctx, `SELECT count(*) FROM outbox`).Scan(&rows); err != nil {
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
	toMark, err := b.untilMarked(ctx, conn, commits)
	if err != nil {
		return err
	}
	slices.Sort(toMark)
	at := func(share float64) float64 {
		return float64(toMark[int(share*float64(len(toMark)-1))].Microseconds()) / 1000
	}
	percent := func(cpu time.Duration) float64 { return cpu.Seconds() * 100 / wall.Seconds() }
	fmt.Printf("latency  %d rows in %.1f s (%.0f rows/s), one transaction each, from %d connections: commit to mark p50 %.1f ms, p99 %.1f ms, max %.1f ms; relay %.1f %% of a core, PostgreSQL %.1f %%, Kafka %.1f %%\n",
		len(commits), wall.Seconds(), float64(len(commits))/wall.Seconds(), b.writers, at(0.5), at(0.99), at(1),
		percent(used[0]), percent(used[1]), percent(used[2]))
	return nil
}

// untilMarked returns the time from each row's commit to its mark: both clocks
// are this machine's.
func (b *bench) untilMarked(ctx context.Context, conn *pgx.Conn, commits map[int64]time.Time) ([]time.Duration, error) {
	rows, err := conn.Query(ctx, `SELECT id, published_at FROM outbox`)
	if err != nil {
		return nil, err
	}
	all := make([]time.Duration, 0, len(commits))
	var id int64
	var marked time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &marked}, func() error {
		if committed, ok := commits[id]; ok {
			all = append(all, marked.Sub(committed))
		}
		return nil
	})
	if err == nil && len(all) != len(commits) {
		err = fmt.Errorf("%d of %d rows are in the table", len(all), len(commits))
	}
	return all, err
}

// write inserts rows one by one at the rate, from all writers, and returns when
// each was committed.
func (b *bench) write(ctx context.Context, database string, duration time.Duration) (map[int64]time.Time, error) {
	type result struct {
		commits map[int64]time.Time
		err     error
	}
	results := make(chan result, b.writers)
	start := time.Now()
	for w := range b.writers {
		go func() {
			commits, err := b.writeSome(ctx, database, start, w, int(duration.Seconds()*float64(b.rate)))
			results <- result{commits, err}
		}()
	}
	all := map[int64]time.Time{}
	var failed error
	for range b.writers {
		r := <-results
		failed = errors.Join(failed, r.err)
		for id, at := range r.commits {
			all[id] = at
		}
	}
	return all, failed
}

// writeSome inserts every so many-th of the rows, each when its time has come
// or, after a slow one, at once.
func (b *bench) writeSome(ctx context.Context, database string, start time.Time, first, rows int) (map[int64]time.Time, error) {
	conn, err := pgx.Connect(ctx, b.postgres.URL(database))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	const insert = `WITH n AS (SELECT pg_notify('outbox', '')) INSERT INTO outbox (topic, key, type, payload)
		SELECT 'latency', 'key-' || $1::int, 'Measured', convert_to(repeat('x', $2::int), 'UTF8') FROM n RETURNING id`
	commits := make(map[int64]time.Time, rows/b.writers+1)
	for i := first; i < rows; i += b.writers {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(b.rate)))):
		}
		var id int64
		if err := conn.QueryRow(ctx, insert, i%b.keys, b.bytes).Scan(&id); err != nil {
			return nil, err
		}
		commits[id] = time.Now()
	}
	return commits, nil
}
